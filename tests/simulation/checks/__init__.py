"""The rules that every run must keep. Each check is a function whose name states its rule."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.simulation.history import Violation

from . import (
    budget,
    ending,
    errors,
    executions,
    health,
    linearizability,
    lists,
    locks,
    order,
    outages,
    reading,
    replies,
    sharing,
    times,
    transactions,
)
from .index import Index

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.simulation.history import History
    from tests.simulation.plan import Plan

    from .index import Broken

ALL: tuple[Callable[[Index], Iterator[Broken]], ...] = (
    executions.no_command_is_applied_more_often_than_its_policy_permits,
    executions.a_call_that_reports_nothing_applied_was_never_applied,
    executions.a_refused_command_was_never_applied,
    executions.an_acknowledged_command_was_applied_during_its_call,
    executions.an_acknowledged_command_is_not_applied_after_its_call,
    executions.an_unknown_outcome_was_written,
    executions.a_read_does_not_end_with_an_unknown_outcome,
    executions.a_command_is_attempted_no_more_often_than_its_policy_permits,
    executions.nothing_is_written_after_its_call_ended,
    executions.an_expired_call_is_not_written,
    replies.a_reply_is_one_that_the_server_gave_during_the_call,
    replies.a_reply_with_a_token_has_that_of_its_own_command,
    replies.a_batch_returns_one_reply_for_each_command,
    order.no_finished_call_is_applied_after_a_later_write,
    order.no_abandoned_transaction_is_applied_after_a_later_write,
    order.no_transaction_overtakes_a_finished_call,
    order.a_client_kills_only_connections_of_its_own,
    order.calls_keep_their_order_for_each_key,
    order.calls_are_written_in_the_order_in_which_they_were_made,
    order.writes_use_one_connection_while_it_is_open,
    order.calls_of_one_tick_keep_their_order_for_each_key,
    order.commands_of_a_pipeline_are_executed_in_their_order,
    transactions.a_transaction_is_executed_whole_and_in_order,
    transactions.a_transaction_is_executed_without_interruption,
    transactions.no_command_of_a_transaction_is_applied_outside_it,
    transactions.a_transaction_is_applied_only_if_its_watched_keys_did_not_change,
    transactions.a_transaction_fails_only_if_a_watched_key_changed,
    lists.no_element_is_delivered_twice,
    lists.no_element_is_lost,
    lists.an_acknowledged_element_is_in_a_list_or_was_taken,
    locks.two_callers_never_hold_one_lock,
    locks.an_acquired_lock_was_taken_on_the_server,
    locks.a_lock_that_is_still_held_can_be_released,
    locks.an_acquisition_that_failed_has_not_taken_the_lock,
    locks.a_released_lock_is_no_longer_held,
    locks.the_numbers_of_holders_increase,
    locks.a_lock_is_reported_lost_only_if_it_is,
    locks.a_holder_learns_of_the_loss_of_its_lock,
    locks.a_holder_does_not_outlast_the_timeout_of_its_lock,
    locks.a_holder_is_notified_when_its_client_is_closed,
    locks.a_renewed_lock_does_not_expire,
    locks.a_waiting_caller_gets_a_free_lock,
    locks.a_block_raises_what_its_body_raises,
    linearizability.registers_are_linearizable,
    times.a_call_ends_by_its_deadline,
    times.a_blocking_call_reaches_the_server_by_its_deadline,
    times.a_cancellation_ends_its_call_at_once,
    times.a_cancellation_is_not_swallowed,
    times.only_a_cancelled_call_ends_as_cancelled,
    times.every_call_ends,
    times.calls_end_when_their_client_has_closed,
    errors.every_error_is_a_documented_one,
    errors.an_error_that_promises_nothing_was_applied_fits_its_progress,
    health.down_has_a_reason,
    health.a_dependency_is_up_again_soon_after_the_last_fault,
    health.a_call_is_not_refused_as_down_without_a_reason,
    health.a_server_that_serves_nothing_is_not_up,
    health.degraded_ends_when_refusals_stop,
    health.an_accepted_write_ends_the_report_of_refused_writes,
    health.closing_a_client_does_not_end_a_health_that_another_uses,
    health.nothing_is_published_after_the_last_client_closed,
    outages.an_outage_is_published_before_callers_see_an_error,
    outages.a_silent_server_is_soon_down,
    outages.lost_connections_alone_are_not_an_outage,
    outages.one_timeout_is_not_an_outage,
    outages.a_reply_that_arrived_is_returned,
    outages.a_call_does_not_wait_long_after_its_connection_was_lost,
    outages.a_call_does_not_lose_its_connection_without_a_reason,
    sharing.unused_connections_of_a_pool_are_closed,
    sharing.connections_of_a_pool_are_kept_for_its_next_client,
    sharing.a_call_finds_its_client_closed_only_if_it_was,
    sharing.a_name_that_was_set_is_that_of_all_connections,
    sharing.a_dropped_client_warns_and_is_collected,
    reading.what_health_shows_is_consistent,
    reading.who_follows_a_health_sees_its_latest_state,
    reading.a_flight_recorder_has_every_change,
    reading.waiting_for_up_ends_when_it_is_up,
    errors.a_misuse_raises_its_error,
    ending.every_open_client_is_up_and_answers_at_the_end,
    ending.every_counter_returns_to_zero,
    ending.an_idle_client_runs_only_its_probe_and_its_connections,
    ending.the_retry_budget_stays_within_its_size,
    budget.a_payment_is_taken_from_the_budget,
    budget.a_refund_returns_what_the_call_had_paid,
    budget.the_budget_earns_one_token_for_each_reply,
    budget.a_call_that_is_cancelled_in_its_backoff_is_refunded,
    ending.closed_clients_leave_nothing_behind,
    ending.nothing_is_left_when_the_last_client_has_closed,
    ending.a_tracer_sees_the_end_of_every_call,
    ending.no_unexpected_error_is_logged,
)


def check(history: History, plan: Plan | None = None) -> list[Violation]:
    """Return every violation of a rule, in the order of `ALL`."""
    index = Index(history, plan)
    return [
        Violation(rule.__name__, broken.detail, broken.operations, broken.at)
        for rule in ALL
        for broken in rule(index)
    ]
