//! One test for each fault that the check has to notice: the invariant that breaks, by one of the
//! shortest traces, printed step by step.

use std::println;

use super::explore::explore;
use super::judge::Invariant;
use super::setup::{Born, Setup};
use super::setups::{
    KEYED_1, KEYED_2, LOOK, READ, WRITE_1, WRITE_2, begun_alone_by_each,
    begun_at_both_ends_of_a_cut_link, begun_beside_the_one_that_holds_it_alone,
    begun_beside_the_reborn, begun_beside_the_young, begun_on_two_sides_of_a_partition,
    begun_twice_under_one_key, changes_without_room, drawn_where_ballots_are_highest,
    one_is_left_of_two, two_left_out_against_the_silent_one,
};
use crate::session::mutant::{self, Mutant};

/// More than any of the faults needs.
const STATES_MAX: usize = 3_000_000;

fn caught(setup: Setup, mutant: Option<Mutant>, expected: Invariant) {
    mutant::set(mutant);
    let report = explore(setup, STATES_MAX);
    mutant::set(None);
    let found = report.found.expect("the fault is noticed");
    println!(
        "{}: {:?} after {} steps, {} states, {:.1} s: {}",
        report.name,
        found.violation.invariant,
        found.steps.len(),
        report.states,
        report.took.as_secs_f32(),
        found.violation.how,
    );
    for (at, step) in (1..).zip(&found.steps) {
        println!("{at:>4}  {step}");
    }
    assert!(!found.steps.is_empty());
    assert_eq!(found.violation.invariant, expected);
}

const TWO_WRITES: Setup =
    Setup { attempts: &[WRITE_1, WRITE_2], takers: &[1], takeovers: 1, ..Setup::PLAIN };

const CHANGE: Setup = Setup {
    peers: 4,
    settled: 1,
    attempts: &[WRITE_1, WRITE_2],
    takers: &[1],
    takeovers: 1,
    swaps: &[(&[2], Some(3))],
    changes: 1,
    ..Setup::PLAIN
};

#[test]
fn a_lone_executors_vote_is_no_quorum() {
    let setup = Setup {
        name: "a lone executor's vote as a quorum",
        peers: 4,
        members: &[1, 2, 3],
        executors: &[1],
        attempts: &[WRITE_1],
        ..Setup::PLAIN
    };
    caught(setup, Some(Mutant::LoneVote), Invariant::FromChosen);
}

#[test]
fn a_proposal_that_left_is_never_abandoned() {
    let setup = Setup {
        name: "abandoning after Accept",
        prune: false,
        attempts: &[WRITE_1, WRITE_2],
        abandons: 1,
        abandon_proposals: true,
        ..Setup::PLAIN
    };
    caught(setup, Some(Mutant::AbandonProposal), Invariant::ChosenExtend);
}

#[test]
fn a_refused_change_is_taken_back_only_once_nobody_can_choose_it() {
    let setup = Setup { name: "withdrawing early", ..changes_without_room() };
    caught(setup, Some(Mutant::WithdrawEarly), Invariant::ChosenExtend);
}

#[test]
fn a_late_execution_is_not_accepted() {
    let setup = Setup {
        name: "accepting a late execution",
        prune: false,
        executors: &[1],
        attempts: &[WRITE_1, WRITE_2],
        abandons: 1,
        ..Setup::PLAIN
    };
    caught(setup, Some(Mutant::LateResult), Invariant::ChosenExtend);
}

const REPEAT: Setup =
    Setup { attempts: &[KEYED_1, KEYED_2, KEYED_1], keyed_max: 1, ..Setup::PLAIN };

#[test]
fn forgetting_requests_raises_the_floor() {
    let setup = Setup { name: "no floor", ..REPEAT };
    caught(setup, Some(Mutant::NoFloor), Invariant::Once);
}

#[test]
fn the_number_in_a_clients_token_is_pinned_for_its_repeats() {
    let setup = Setup { name: "seen not pinned", unpinned: true, ..REPEAT };
    caught(setup, None, Invariant::Once);
}

#[test]
fn an_abandoned_number_is_spent() {
    let setup = Setup {
        name: "reusing n",
        executors: &[1],
        attempts: &[WRITE_1, WRITE_2],
        abandons: 1,
        ..Setup::PLAIN
    };
    caught(setup, Some(Mutant::ReuseNumber), Invariant::UsedOnce);
}

#[test]
fn a_takeover_waits_for_promises() {
    let setup = Setup { name: "skipping promises", ..TWO_WRITES };
    caught(setup, Some(Mutant::SkipPromises), Invariant::ChosenExtend);
}

#[test]
fn a_copy_does_not_vote_below_its_promise() {
    let setup = Setup { name: "voting below a promise", prune: false, ..TWO_WRITES };
    caught(setup, Some(Mutant::VoteBelowPromise), Invariant::PromisesRise);
}

#[test]
fn a_restarted_process_is_another_member() {
    let setup = Setup {
        name: "an amnesiac with the same identity",
        restarters: &[1],
        restarts: 1,
        amnesia: true,
        takers: &[2],
        ..TWO_WRITES
    };
    caught(setup, None, Invariant::ChosenExtend);
}

#[test]
fn forgetting_leaves_a_watermark() {
    let setup = Setup {
        name: "forgetting without W",
        forgetters: &[1],
        forgettings: 1,
        takers: &[2],
        ..TWO_WRITES
    };
    caught(setup, Some(Mutant::NoWatermark), Invariant::NoVoteForgotten);
}

#[test]
fn a_configuration_opens_after_its_seal_is_chosen() {
    let setup = Setup { name: "opening before the seal is chosen", ..CHANGE };
    caught(setup, Some(Mutant::OpenEarly), Invariant::SealFirst);
}

#[test]
fn a_response_waits_until_its_change_is_chosen() {
    let setup = Setup { name: "acknowledging early", attempts: &[WRITE_1], ..Setup::PLAIN };
    caught(setup, Some(Mutant::ReleaseEarly), Invariant::FromChosen);
}

#[test]
fn a_seal_is_chosen_by_the_old_members() {
    let setup = Setup { name: "a seal by the new majority only", ..CHANGE };
    caught(setup, Some(Mutant::SealByNew), Invariant::SealFirst);
}

#[test]
fn the_one_that_stays_does_not_leave_the_others_out_by_itself() {
    let setup =
        Setup { name: "left out by the new majority", ..two_left_out_against_the_silent_one() };
    caught(setup, Some(Mutant::SealByNew), Invariant::SealFirst);
}

#[test]
fn a_takeover_that_finds_two_left_out_covers_the_one_that_stayed() {
    let setup =
        Setup { name: "covering those left out alone", ..two_left_out_against_the_silent_one() };
    caught(setup, Some(Mutant::CoverOld), Invariant::ChosenExtend);
}

#[test]
fn of_two_members_the_one_that_is_left_is_needed() {
    let setup = Setup { name: "nobody is left of two", ..one_is_left_of_two() };
    caught(setup, Some(Mutant::NoSurvivor), Invariant::FromChosen);
    let setup = Setup { name: "the vote of the dead", ..one_is_left_of_two() };
    caught(setup, Some(Mutant::DeadVote), Invariant::FromChosen);
}

#[test]
fn a_takeover_that_finds_a_seal_covers_the_new_members() {
    let setup = Setup { name: "a takeover covering the old majority only", ..CHANGE };
    caught(setup, Some(Mutant::CoverOld), Invariant::ChosenExtend);
}

#[test]
fn a_takeover_that_finds_a_seal_covers_the_old_members() {
    let setup = Setup {
        name: "a takeover covering the new majority only",
        takers: &[1, 3],
        takeovers: 2,
        // The old owner reaches the newcomer only, and the others reach each other.
        cut: &[(0, 1), (1, 0), (0, 2), (2, 0), (1, 3), (3, 1)],
        ..CHANGE
    };
    caught(setup, Some(Mutant::CoverNew), Invariant::ChosenExtend);
}

#[test]
fn a_read_is_confirmed() {
    let setup = Setup {
        name: "unconfirmed reads",
        attempts: &[WRITE_1, READ],
        takers: &[1],
        takeovers: 1,
        ..Setup::PLAIN
    };
    caught(setup, Some(Mutant::Unconfirmed), Invariant::ReadsFresh);
}

#[test]
fn an_executor_runs_on_the_base_named() {
    let setup = Setup {
        name: "the wrong base",
        executors: &[1],
        attempts: &[WRITE_1, KEYED_2, KEYED_2],
        settled: 1,
        abandons: 1,
        ..Setup::PLAIN
    };
    caught(setup, Some(Mutant::AnyBase), Invariant::Once);
}

#[test]
fn a_takeover_answers_from_what_it_reasserted() {
    let setup = Setup {
        name: "answering from a record not reasserted",
        attempts: &[WRITE_1, LOOK],
        takers: &[1],
        takeovers: 1,
        ..Setup::PLAIN
    };
    caught(setup, Some(Mutant::NoReassert), Invariant::FromChosen);
}

#[test]
fn a_ballot_goes_before_a_number() {
    let setup = Setup {
        name: "n before ballot",
        attempts: &[LOOK, WRITE_1, WRITE_2],
        settled: 1,
        cut: &[(0, 1), (1, 0)],
        takers: &[1, 2],
        takeovers: 2,
        ..Setup::PLAIN
    };
    caught(setup, Some(Mutant::NumberFirst), Invariant::ChosenExtend);
}

#[test]
fn a_takeover_goes_above_the_ballot_that_the_session_was_drawn_with() {
    let setup = Setup { name: "below what it was drawn with", ..drawn_where_ballots_are_highest() };
    caught(setup, Some(Mutant::BelowDrawn), Invariant::ChosenExtend);
}

#[test]
fn a_session_named_by_a_key_is_begun_only_after_asking_the_others() {
    let setup = Setup { name: "beginning without a prepare", ..begun_twice_under_one_key() };
    caught(setup, Some(Mutant::BeginUnprepared), Invariant::ChosenExtend);
}

#[test]
fn a_birth_asks_more_than_its_members() {
    let setup = Setup { name: "begun by its members", ..begun_at_both_ends_of_a_cut_link() };
    caught(setup, Some(Mutant::BeginAtMembers), Invariant::ChosenExtend);
}

#[test]
fn a_peer_that_is_no_member_remembers_a_birth() {
    let setup = Setup { name: "a birth forgotten", ..begun_at_both_ends_of_a_cut_link() };
    caught(setup, Some(Mutant::ForgetBirth), Invariant::ChosenExtend);
}

#[test]
fn a_birth_closes_those_before_it() {
    let setup = Setup { name: "a birth left open", ..begun_alone_by_each() };
    caught(setup, Some(Mutant::KeepOpen), Invariant::ReadsFresh);
}

#[test]
fn of_those_who_are_known_one_may_be_missed() {
    let setup = Setup { name: "two missed", ..begun_on_two_sides_of_a_partition() };
    caught(setup, Some(Mutant::MissTwo), Invariant::ChosenExtend);
}

#[test]
fn a_reborn_peer_is_no_witness() {
    let setup = Setup { name: "a reborn witness", ..begun_beside_the_reborn() };
    caught(setup, Some(Mutant::RebornWitness), Invariant::ChosenExtend);
}

#[test]
fn a_reborn_peer_is_no_witness_beside_the_one_that_may_hold_it_alone() {
    let setup =
        Setup { name: "two reborn witnesses", ..begun_beside_the_one_that_holds_it_alone() };
    caught(setup, Some(Mutant::RebornWitness), Invariant::ChosenExtend);
}

#[test]
fn a_young_peer_is_no_witness_before_a_settled_one_vouches_for_it() {
    let setup = Setup { name: "a young witness", ..begun_beside_the_young() };
    caught(setup, Some(Mutant::YoungWitness), Invariant::ChosenExtend);
}

#[test]
fn a_ballot_is_never_used_again() {
    let setup = Setup {
        name: "reusing a ballot after forgetting",
        born: Born::Token,
        members: &[1, 2],
        attempts: &[WRITE_1, WRITE_2],
        takers: &[0],
        takeovers: 2,
        forgetters: &[0],
        forgettings: 1,
        ..Setup::PLAIN
    };
    caught(setup, Some(Mutant::ReuseBallot), Invariant::OneBody);
}
