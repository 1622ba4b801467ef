"""Ray connection, sizing of actor pools, progress reports, and all uses of Ray's private APIs."""
