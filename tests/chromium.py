"""The Chromium that pages are tested in: Debian's, or another that CHROMIUM names."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright


def executable() -> Path | None:
    found = (
        os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    )
    return None if found is None else Path(found)


def browsing() -> Iterator[Browser]:
    """Skips the test, loudly, where there is none."""
    path = executable()
    if path is None:
        pytest.skip("NO CHROMIUM: pages are not tested; apt-get install chromium, or set CHROMIUM")
    with sync_playwright() as playwright:
        # In a container root has no sandbox of its own; the pages are ours.
        browser = playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        yield browser
        browser.close()
