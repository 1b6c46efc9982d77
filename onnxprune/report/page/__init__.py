"""The parts of the HTML page of a run: pictures as SVG, tables as rows of text, the template and its style."""
