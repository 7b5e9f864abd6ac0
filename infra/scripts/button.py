"""Prints the page with the button "Deploy to Azure" for a template at a public address: ``button.py URL``."""

from __future__ import annotations

import html
import sys
from urllib.parse import quote, urlsplit

PORTAL = "https://portal.azure.com/#create/Microsoft.Template/uri/"
PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>Medical Imaging Server for DICOM</title>
<p><a href="{link}"><img alt="Deploy to Azure" src="https://aka.ms/deploytoazurebutton"></a></p>
<p>Provisions <a href="{template}">the resources</a>; docs/deploy.md says what follows. Untested.</p>
</html>"""


def page(template: str) -> str:
    """The page. Raises ValueError unless the address is one that the portal reads: https."""
    if urlsplit(template).scheme != "https":
        raise ValueError("The template needs an https address.")
    return PAGE.format(link=PORTAL + quote(template, safe=""), template=html.escape(template))


if __name__ == "__main__":
    print(page(sys.argv[1]))
