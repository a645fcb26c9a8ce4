"""The pieces that both machines of secure aggregation share (``client/worker``, ``server/rounds``); see PROTOCOL.md."""
