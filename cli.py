"""`python cli.py …` is `vlre …` without installing the command."""

from retrieval_engine.cli import main

if __name__ == "__main__":
    main()
