"""The parts of the HTML page of a run: pictures as SVG, tables of text, the template and its style."""
