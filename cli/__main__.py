"""The first thing that a command runs: signals wait until there is somebody to answer them."""

import signal


def run() -> None:
    """Run the command line of this process."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    from onnxprune_cli import main  # takes long enough to be interrupted

    main.run()


if __name__ == "__main__":
    run()
