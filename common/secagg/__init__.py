"""The pieces of secure aggregation that ``client/secagg.py`` and ``server/secagg.py`` share; see PROTOCOL.md."""
