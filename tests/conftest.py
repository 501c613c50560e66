"""Every call into minillm checks its shapes while the tests run: jaxtyping reads the signatures, beartype enforces them."""

from jaxtyping import install_import_hook


install_import_hook("minillm", "beartype.beartype")
