"""``python -m digs_survey`` is the command line."""

from digs_survey.cli import main

if __name__ == "__main__":
    main()
