"""The command line that both programs share: options from settings, help, and errors as sentences.

Besides the programs' own command modules, only this package uses typer.
"""
