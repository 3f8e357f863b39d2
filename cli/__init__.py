"""The command line: options, one library call, a rendering. Installed as `logitcache.cli`."""
