"""The command line that both programs share: options from settings, help, errors as sentences. The only package with typer besides the programs' own command modules."""
