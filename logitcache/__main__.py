"""`python -m logitcache` is `logitcache`."""

from logitcache.cli.start import main

if __name__ == "__main__":
    main()
