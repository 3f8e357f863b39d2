"""`python -m logitcache` is `logitcache`."""

from logitcache.cli.app import main

if __name__ == "__main__":
    main()
