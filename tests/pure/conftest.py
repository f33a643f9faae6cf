"""Tests without torch. Having a conftest here makes ``graphs`` and ``reference`` importable from all of them."""
