"""``list``, ``show``, ``kernels``: what is known, without running anything."""

from __future__ import annotations

from mmurace.explorer.run import outcome as codes
from mmurace.oracle.rules.table import Rule, rule_of
from mmurace.oracle.rules.table import rules as known_rules
from mmurace.protocol.errors import UserError
from mmurace.report.commands.run import print_json
from mmurace.report.screen import stdout, write_out
from mmurace.scenarios import catalogue, index


def list_races(
    rules: bool, subsystem: str, rule: str, release: str, cve: bool, as_json: bool
) -> int:
    """List the catalogue of races, or those that are found under some words; or the rules."""
    from mmurace.report import catalogue as pages

    if rules:
        return list_rules(as_json)
    if rule and rule_of(rule) is None:
        known = ", ".join(one.id for one in known_rules())
        raise UserError("--rule", f"no rule {rule!r}", f"one of {known}")
    races = index.chosen(catalogue.load_all().values(), subsystem, rule, release, cve)
    if as_json:
        return print_json({"races": [pages.race_dict(race) for race in races]})
    console = stdout()
    console.print(pages.listing_of(races, console.width))
    return codes.HELD


def list_rules(as_json: bool) -> int:
    """List the oracle's rules."""
    from mmurace.report import rules as pages

    if as_json:
        return print_json({"rules": [pages.rule_dict(rule) for rule in known_rules()]})
    stdout().print(pages.rules_table())
    return codes.HELD


def kernels(releases: list[str], arch: str, drivers: list[str], as_json: bool) -> int:
    """Say what releases do, or how two of them differ."""
    from mmurace.nodes.kernel.variant import preset
    from mmurace.nodes.kernel.variant.preset import drivers_of
    from mmurace.nodes.kernel.variant.release import NEWEST
    from mmurace.report import kernels as pages

    named = releases or [str(NEWEST)]
    preset(named[0], arch, where="kernels")
    profiles = drivers_of(arch, drivers, "--driver")
    presets = [preset(release, arch, where="kernels", profiles=profiles) for release in named]
    if len(releases) == 2:
        if as_json:
            return print_json(pages.differences_dict(*presets))
        write_out(pages.differences_text(*presets))
    elif as_json:
        print_json(pages.table_dict(presets))
    else:
        stdout().print(pages.table_of(presets))
    return codes.HELD


def show_rule(rule: Rule, as_json: bool) -> int:
    """Tell all about one rule."""
    from mmurace.report import rules as pages

    if as_json:
        return print_json(pages.rule_dict(rule))
    write_out(pages.rule_page(rule))
    return codes.HELD


def show(race: str, as_json: bool) -> int:
    """Tell all about one race, or one rule."""
    from mmurace.report import catalogue as pages

    rule = rule_of(race)
    if rule is not None:
        return show_rule(rule, as_json)
    found = catalogue.find(race)
    if as_json:
        return print_json(pages.race_dict(found))
    write_out(pages.page_of(found))
    return codes.HELD
