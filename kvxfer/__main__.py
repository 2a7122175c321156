"""``python -m kvxfer``: the command line."""

from kvxfer.cli import main

raise SystemExit(main())
