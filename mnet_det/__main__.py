"""`python -m mnet_det VERB …`, the same as `mnet-det VERB …`, so that torchrun can start it."""

from mnet_det.cli import main

if __name__ == "__main__":
    main()
