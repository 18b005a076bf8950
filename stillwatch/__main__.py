"""The command `stillwatch`, also as `python -m stillwatch`."""


def main() -> None:
    """Silences the traceback of Ctrl-C during the imports."""
    try:
        from stillwatch.cli.main import main as run
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    run()


if __name__ == "__main__":
    main()
