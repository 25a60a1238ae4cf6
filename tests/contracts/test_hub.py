"""What we lean on in huggingface_hub: what is fetched, and how a refusal is told from a missing network."""

import inspect

from huggingface_hub import snapshot_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError


def test_a_snapshot_takes_revision_and_patterns():
    assert {"revision", "allow_patterns", "ignore_patterns"} <= set(
        inspect.signature(snapshot_download).parameters
    )


def test_refusals_and_missing_networks_are_errors_of_their_own():
    assert issubclass(GatedRepoError, HfHubHTTPError)
    assert not issubclass(LocalEntryNotFoundError, GatedRepoError)
