from numeric_fixtures import NOTHING_RECORDED


def pytest_collection_modifyitems(items: list) -> None:
    """Drops the tests for which no fixture holds the keys they compare: there is nothing to skip or to fail."""
    items[:] = [item for item in items if NOTHING_RECORDED not in map(str, _parameters(item))]


def _parameters(item) -> list:
    return list(item.callspec.params.values()) if hasattr(item, "callspec") else []
