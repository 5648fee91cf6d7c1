"""What `python -m franca.publish` does once its arguments are read."""

import argparse
import sys

from franca.hub import CheckpointError
from franca.publish.errors import PublishError
from franca.publish.placing import explained
from franca.publish.release import Options, publish


def run(given: argparse.Namespace) -> int:
    """Make the release; returns the exit status."""
    names = ("rasa", "with_state", "steps", "licence", "name", "data")
    options = Options(**{name: getattr(given, name) for name in names})
    try:
        done = publish(given.run, given.output, options, given.force, lambda text: print(text, file=sys.stderr))
    except OSError as error:
        print(f"error: {explained(error, given.output)}", file=sys.stderr)
        return 2
    except (PublishError, CheckpointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for entry in done.files:
        print(f"{entry['bytes'] / 1e6:10.2f} MB  {entry['path']}")
    for note in done.notes:
        print(f"note: {note}")
    print(f"release of step {done.step} in {done.folder}; check it with: cd {done.folder} && sha256sum -c SHA256SUMS")
    return 0
