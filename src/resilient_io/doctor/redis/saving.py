"""Whether the data of a Redis server outlive it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from resilient_io.doctor.looking import Finding, merged, note, ok, problem

from .account import number, span

if TYPE_CHECKING:
    from .account import Account

__all__ = ["look_at_persistence"]


async def look_at_persistence(account: Account) -> Finding:
    """Look whether data outlive the server, and whether saving fails."""
    info = await account.info()
    if info.get("loading") == "1":
        left = int(number(info, "loading_eta_seconds", -1))
        done = number(info, "loading_loaded_perc")
        return problem(
            f"it is still reading its data from disk ({done:.0f}%, {span(left)} to go)"
            if left >= 0
            else "it is still reading its data from disk",
            "Wait: until it is done it refuses every command (LOADING).",
            loading=True,
        )
    aof = info.get("aof_enabled") == "1"
    data: dict[str, Any] = {"aof": aof}
    findings = await _look_at_saving(account, info)
    if aof and info.get("aof_last_write_status", "ok") != "ok":
        findings.append(
            problem(
                "the last write to its log (AOF) failed: it refuses writes (MISCONF)",
                "Look for a full disk and at the rights of its folder (dir in redis.conf).",
            )
        )
    if findings:
        return merged(findings, **data)
    save = await account.config("save")
    data["save"] = save
    if aof:
        return ok("AOF is on", **data)
    if save == "":
        return note(
            "persistence is off: a restart loses everything",
            "Right for a cache; for data that must stay, set appendonly yes, with a disk that "
            "outlives the container.",
            **data,
        )
    age = number(info, "rdb_last_save_time")
    unsaved = int(number(info, "rdb_changes_since_last_save"))
    data["unsaved_changes"] = unsaved
    known = "snapshots (RDB)" if save or age else "persistence is unknown"
    return ok(f"{known}, {unsaved} changes since the last one would be lost in a crash", **data)


async def _look_at_saving(account: Account, info: dict[str, str]) -> list[Finding]:
    if info.get("rdb_last_bgsave_status", "ok") == "ok":
        return []
    stops = await account.config("stop-writes-on-bgsave-error")
    advice = (
        "Look for a full disk, the rights of its folder (dir in redis.conf), and in its log for "
        '"Can\'t save in background: fork" (then set vm.overcommit_memory=1 on the node).'
    )
    if stops == "no":
        return [note("the last snapshot (RDB) failed", advice)]
    refuses = "it refuses writes (MISCONF)" if stops == "yes" else "it may refuse writes (MISCONF)"
    return [problem(f"the last snapshot (RDB) failed: {refuses}", advice)]
