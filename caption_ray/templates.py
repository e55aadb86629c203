"""How all pages are made: templates within the package, strict about what they are given."""

from jinja2 import Environment, PackageLoader, StrictUndefined


def environment(subpackage: str) -> Environment:
    """Return Jinja's environment for the templates in a subpackage's folder."""
    return Environment(
        loader=PackageLoader("caption_ray", subpackage),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
