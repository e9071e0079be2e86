//! The setups to explore.

use super::setup::{Attempt, Belief, Born, Kind, SELF, Setup};

const fn attempt(number: u8, kind: Kind, keyed: bool) -> Attempt {
    Attempt { number, kind, keyed }
}

pub(super) const WRITE_1: Attempt = attempt(1, Kind::Write, false);
pub(super) const WRITE_2: Attempt = attempt(2, Kind::Write, false);
pub(super) const KEYED_1: Attempt = attempt(1, Kind::Write, true);
pub(super) const KEYED_2: Attempt = attempt(2, Kind::Write, true);
pub(super) const READ: Attempt = attempt(9, Kind::Read, false);
pub(super) const LOOK: Attempt = attempt(8, Kind::Look, false);
const LIAR: Attempt = attempt(7, Kind::Liar, false);

/// The owner's app is cold: another member runs its requests, and may crash or be given up.
pub(super) fn delegated_writes() -> Setup {
    Setup {
        name: "delegated writes",
        executors: &[SELF, 1],
        instant: false,
        attempts: &[WRITE_1, WRITE_2],
        takers: &[2],
        takeovers: 1,
        abandons: 1,
        ..Setup::PLAIN
    }
}

/// Two peers take over, one of them no member.
pub(super) fn competing_takeovers() -> Setup {
    Setup {
        name: "competing takeovers",
        peers: 4,
        executors: &[1],
        attempts: &[WRITE_1, WRITE_2],
        takers: &[1, 3],
        takeovers: 2,
        ..Setup::PLAIN
    }
}

/// Members refuse what their owner proposes, which takes it back, while another peer takes over.
pub(super) fn changes_without_room() -> Setup {
    Setup {
        name: "changes without room",
        settled: 1,
        attempts: &[WRITE_1, WRITE_2, READ],
        takers: &[1],
        takeovers: 1,
        full: &[1, 2],
        refusals: 2,
        ..Setup::PLAIN
    }
}

/// The same for a session of which nothing was chosen before.
pub(super) fn first_change_without_room() -> Setup {
    Setup {
        name: "first change without room",
        attempts: &[KEYED_1, WRITE_2, KEYED_1],
        takers: &[1, 2],
        takeovers: 1,
        full: &[1, 2],
        refusals: 2,
        ..Setup::PLAIN
    }
}

/// The same for a session that a key names, which two peers begin.
pub(super) fn begun_without_room() -> Setup {
    Setup {
        name: "begun without room",
        born: Born::Key,
        attempts: &[WRITE_1, WRITE_2],
        takers: &[0, 1],
        takeovers: 2,
        full: &[0, 1, 2],
        refusals: 2,
        ..Setup::PLAIN
    }
}

/// The owner is no member, or another member runs its requests: the change is held elsewhere.
pub(super) fn delegated_without_room() -> Setup {
    Setup {
        name: "delegated without room",
        peers: 4,
        members: &[1, 2, 3],
        executors: &[SELF, 1],
        attempts: &[WRITE_1, WRITE_2],
        takers: &[2],
        takeovers: 1,
        full: &[2, 3],
        refusals: 2,
        ..Setup::PLAIN
    }
}

/// A newcomer that takes the place of a member refuses the record of a seal, which gives way to another, while
/// others take over. (Where one member decides alone, both seals are chosen in one step, which the judge does
/// not see.)
pub(super) fn replacement_without_room() -> Setup {
    Setup {
        name: "replacement without room",
        peers: 4,
        members: &[0, 1],
        settled: 1,
        attempts: &[WRITE_1, WRITE_2],
        takers: &[1, 2],
        takeovers: 2,
        swaps: &[(&[1], Some(2)), (&[1], Some(3))],
        changes: 2,
        full: &[2],
        refusals: 2,
        ..Setup::PLAIN
    }
}

/// The session is drawn where ballots are the highest of their round, and taken over by one who has
/// heard of no ballot at all.
pub(super) fn drawn_where_ballots_are_highest() -> Setup {
    Setup {
        name: "drawn where ballots are highest",
        drawn_at: 2,
        attempts: &[WRITE_1, WRITE_2, READ],
        takers: &[0],
        takeovers: 1,
        ..Setup::PLAIN
    }
}

/// A member is replaced while another peer takes over.
pub(super) fn takeover_against_change_of_members() -> Setup {
    Setup {
        name: "takeover against change of members",
        settled: 1,
        peers: 4,
        attempts: &[WRITE_1, WRITE_2],
        takers: &[1],
        takeovers: 1,
        swaps: &[(&[2], Some(3))],
        changes: 1,
        ..Setup::PLAIN
    }
}

/// Two members are struck off, one after the other, while one of them takes over.
pub(super) fn members_struck_off_against_takeover() -> Setup {
    Setup {
        name: "members struck off against takeover",
        settled: 1,
        attempts: &[WRITE_1, WRITE_2],
        takers: &[1],
        takeovers: 1,
        swaps: &[(&[2], None), (&[1], None)],
        changes: 2,
        ..Setup::PLAIN
    }
}

/// One member is about to leave and another is silent: the third leaves both out while the first still
/// votes. The one that leaves is started again, and the silent one comes back and takes over.
pub(super) fn two_left_out_against_the_silent_one() -> Setup {
    Setup {
        name: "two left out against the silent one",
        settled: 1,
        attempts: &[WRITE_1, WRITE_2, READ],
        takers: &[1, 2],
        takeovers: 2,
        swaps: &[(&[1, 2], None)],
        changes: 1,
        restarters: &[1],
        restarts: 1,
        ..Setup::PLAIN
    }
}

/// Two hold the session, one of them is started again, and two peers take over, one of them no member: what
/// the one that is left holds is enough, and each of the two needs it.
pub(super) fn one_is_left_of_two() -> Setup {
    Setup {
        name: "one is left of two",
        members: &[0, 1],
        executors: &[SELF, 1],
        attempts: &[WRITE_1, WRITE_2, READ],
        settled: 1,
        takers: &[1, 2],
        takeovers: 2,
        restarters: &[0],
        restarts: 1,
        ..Setup::PLAIN
    }
}

/// Of two that hold it one is replaced, and the other is started again: the newcomer may be left alone without
/// what they held.
pub(super) fn a_newcomer_is_left_of_two() -> Setup {
    Setup {
        name: "a newcomer is left of two",
        members: &[0, 1],
        attempts: &[WRITE_1, WRITE_2, READ],
        settled: 1,
        takers: &[0, 2],
        takeovers: 2,
        swaps: &[(&[0], Some(2))],
        changes: 1,
        restarters: &[1],
        restarts: 1,
        ..Setup::PLAIN
    }
}

/// Three hold it, and one leaves the others while one of these is started again.
pub(super) fn one_is_left_of_three_as_another_leaves() -> Setup {
    Setup {
        name: "one is left of three as another leaves",
        attempts: &[WRITE_1, WRITE_2, READ],
        settled: 1,
        takers: &[1, 2],
        takeovers: 2,
        swaps: &[(&[2], None)],
        changes: 1,
        restarters: &[0],
        restarts: 1,
        ..Setup::PLAIN
    }
}

/// A member restarts, another forgets, and the members change so that it may come back.
pub(super) fn amnesia_and_forgetting() -> Setup {
    Setup {
        name: "amnesia and forgetting",
        attempts: &[WRITE_1, WRITE_2],
        takers: &[1, 2],
        takeovers: 1,
        swaps: &[(&[2], Some(2))],
        changes: 1,
        restarters: &[2],
        restarts: 1,
        forgetters: &[1],
        forgettings: 1,
        ..Setup::PLAIN
    }
}

/// A request is repeated while others push it out of what is remembered.
pub(super) fn repeats_and_floors() -> Setup {
    Setup {
        name: "repeats and floors",
        instant: false,
        attempts: &[KEYED_1, KEYED_2, KEYED_1],
        takers: &[1],
        takeovers: 1,
        abandons: 1,
        give_ups: 1,
        keyed_max: 1,
        unkeyed_max: 1,
        ..Setup::PLAIN
    }
}

/// Reads at an owner that may have been deposed.
pub(super) fn reads_under_takeover() -> Setup {
    Setup {
        name: "reads under takeover",
        executors: &[SELF, 1],
        attempts: &[WRITE_1, READ, LOOK],
        takers: &[1],
        takeovers: 1,
        ..Setup::PLAIN
    }
}

/// The first change of a session is chosen after everyone lost patience, and repeated.
pub(super) fn drawn_and_repeated() -> Setup {
    Setup {
        name: "drawn and repeated",
        born: Born::Drawn,
        attempts: &[KEYED_1, KEYED_1, WRITE_2, READ],
        takers: &[1],
        takeovers: 1,
        give_ups: 1,
        cut: &[(0, 1), (1, 0)],
        ..Setup::PLAIN
    }
}

/// Two peers search for the session under its key at once, find nobody who knows of it, and begin
/// it; their answers may be outdated by then.
pub(super) fn begun_twice_under_one_key() -> Setup {
    Setup {
        name: "begun twice under one key",
        born: Born::Key,
        attempts: &[WRITE_1, WRITE_2],
        takers: &[0, 1],
        takeovers: 2,
        ..Setup::PLAIN
    }
}

const fn knows(at: u8, knows: &'static [u8], members: &'static [u8]) -> Belief {
    Belief { at, knows, silent: &[], absent: &[], members }
}

/// Five peers, the link between the first two cut: each of the two takes its members from those that
/// it hears, and their majorities do not meet.
pub(super) fn begun_at_both_ends_of_a_cut_link() -> Setup {
    Setup {
        name: "begun at both ends of a cut link",
        born: Born::Key,
        peers: 4,
        attempts: &[WRITE_1, WRITE_2],
        takers: &[0, 1],
        takeovers: 2,
        cut: &[(0, 1), (1, 0)],
        beliefs: const {
            &[
                Belief { silent: &[1], ..knows(0, &[0, 1, 2, 3], &[0, 2]) },
                Belief { silent: &[0], ..knows(1, &[0, 1, 2, 3], &[1, 3]) },
            ]
        },
        ..Setup::PLAIN
    }
}

/// One beginner has not heard of a peer that the other knows, and each begins with itself.
pub(super) fn begun_where_one_knows_too_few() -> Setup {
    Setup {
        name: "begun where one knows too few",
        born: Born::Key,
        peers: 4,
        attempts: &[WRITE_1, WRITE_2],
        takers: &[0, 3],
        takeovers: 2,
        beliefs: const { &[knows(0, &[0, 1, 2], &[0, 1]), knows(3, &[0, 1, 2, 3], &[2, 3])] },
        ..Setup::PLAIN
    }
}

/// One beginner counts on a peer that is not there, the other knows that it is not.
pub(super) fn begun_where_one_knows_too_many() -> Setup {
    Setup {
        name: "begun where one knows too many",
        born: Born::Key,
        peers: 4,
        attempts: &[WRITE_1, WRITE_2],
        takers: &[0, 1],
        takeovers: 2,
        cut: &[(0, 3), (1, 3), (2, 3), (3, 0), (3, 1), (3, 2)],
        beliefs: const {
            &[
                knows(0, &[0, 1, 2, 3], &[0, 3]),
                Belief { silent: &[3], absent: &[3], ..knows(1, &[0, 1, 2, 3], &[1, 2]) },
            ]
        },
        ..Setup::PLAIN
    }
}

/// Two sides of a partition of four, each of which has not heard the other for long.
pub(super) fn begun_on_two_sides_of_a_partition() -> Setup {
    Setup {
        name: "begun on two sides of a partition",
        born: Born::Key,
        peers: 4,
        attempts: &[WRITE_1, WRITE_2],
        takers: &[0, 2],
        takeovers: 2,
        cut: &[(0, 2), (0, 3), (1, 2), (1, 3), (2, 0), (3, 0), (2, 1), (3, 1)],
        beliefs: const {
            &[
                Belief { silent: &[2, 3], absent: &[2, 3], ..knows(0, &[0, 1, 2, 3], &[0, 1]) },
                Belief { silent: &[2, 3], absent: &[2, 3], ..knows(1, &[0, 1, 2, 3], &[0, 1]) },
                Belief { silent: &[0, 1], absent: &[0, 1], ..knows(2, &[0, 1, 2, 3], &[2, 3]) },
                Belief { silent: &[0, 1], absent: &[0, 1], ..knows(3, &[0, 1, 2, 3], &[2, 3]) },
            ]
        },
        ..Setup::PLAIN
    }
}

/// The records of two members are searched for after one of them was reborn and while the other is
/// silent.
pub(super) fn begun_beside_the_reborn() -> Setup {
    Setup {
        name: "begun beside the reborn",
        born: Born::Key,
        attempts: &[WRITE_1, WRITE_2],
        takers: &[0, 2],
        takeovers: 2,
        settled: 1,
        settled_apart: &[(0, 2), (2, 0), (1, 2), (2, 1)],
        restarters: &[0],
        restarts: 1,
        cut: &[(1, 2), (2, 1)],
        ..Setup::PLAIN
    }
}

/// As above, where nobody has heard yet that the one was reborn.
pub(super) fn begun_beside_the_young() -> Setup {
    Setup { name: "begun beside the young", unheard: true, ..begun_beside_the_reborn() }
}

/// One peer holds the session alone when the others' processes end, in good order or not, and begin
/// again; then nobody hears it any more.
pub(super) fn begun_beside_the_one_that_holds_it_alone() -> Setup {
    Setup {
        name: "begun beside the one that holds it alone",
        born: Born::Key,
        attempts: &[WRITE_1, WRITE_2, READ],
        takers: &[1, 2],
        takeovers: 2,
        settled: 1,
        restarters: &[1, 2],
        restarts: 2,
        cut: &[(0, 1), (1, 0), (0, 2), (2, 0)],
        beliefs: const { &[knows(0, &[0, 1, 2], &[0])] },
        ..Setup::PLAIN
    }
}

/// Sessions of one copy: each beginner is its only member.
pub(super) fn begun_alone_by_each() -> Setup {
    Setup {
        name: "begun alone by each",
        born: Born::Key,
        attempts: &[WRITE_1, WRITE_2],
        takers: &[0, 1],
        takeovers: 3,
        beliefs: const { &[knows(0, &[0, 1, 2], &[0]), knows(1, &[0, 1, 2], &[1])] },
        ..Setup::PLAIN
    }
}

/// Three begin it with different members, and one of them looks after what another left half done.
pub(super) fn begun_three_times_with_other_members() -> Setup {
    Setup {
        name: "begun three times with other members",
        born: Born::Key,
        attempts: &[WRITE_1, WRITE_2],
        takers: &[0, 1, 2],
        takeovers: 3,
        beliefs: const {
            &[
                knows(0, &[0, 1, 2], &[0, 1]),
                knows(1, &[0, 1, 2], &[1, 2]),
                knows(2, &[0, 1, 2], &[0, 2]),
            ]
        },
        ..Setup::PLAIN
    }
}

/// A member that holds nothing yet forgets what was begun under a key before another peer begins it again.
pub(super) fn begun_under_a_key_and_forgotten() -> Setup {
    Setup {
        name: "begun under a key and forgotten",
        born: Born::Key,
        attempts: &[WRITE_1, WRITE_2],
        takers: &[0, 1, 2],
        takeovers: 2,
        forgetters: &[2],
        forgettings: 1,
        ..Setup::PLAIN
    }
}

/// Orders and results that arrive twice, and an executor that restarts.
pub(super) fn echoed_orders() -> Setup {
    Setup {
        name: "echoed orders",
        executors: &[1],
        attempts: &[WRITE_1, WRITE_2],
        takers: &[2],
        takeovers: 1,
        restarters: &[1],
        restarts: 1,
        abandons: 1,
        echoes: true,
        ..Setup::PLAIN
    }
}

/// Two peers take over, one after a change of members that it has not heard of.
pub(super) fn competing_takeovers_against_change_of_members() -> Setup {
    Setup {
        name: "competing takeovers against change of members",
        peers: 4,
        settled: 1,
        attempts: &[WRITE_1, WRITE_2],
        takers: &[1, 3],
        takeovers: 2,
        swaps: &[(&[2], Some(3))],
        changes: 1,
        ..Setup::PLAIN
    }
}

/// A request that was declared safe changes the session, beside a read; the owner leaves.
pub(super) fn handoff_and_shared_reads() -> Setup {
    Setup {
        name: "handoff and shared reads",
        born: Born::Drawn,
        attempts: &[WRITE_1, LIAR, READ],
        takeovers: 1,
        heirs: &[1],
        handoffs: 1,
        ..Setup::PLAIN
    }
}

/// When what lasts for a moment has been over for a second, when its owner forgets it, and when its members do.
const ENDS: &[u64] = &[2_000, 63_000, 75_000];

/// What lasts for a moment ends, is forgotten, and is begun again by another peer.
pub(super) fn ended_and_begun_again() -> Setup {
    Setup {
        name: "ended and begun again",
        born: Born::Key,
        settled: 1,
        attempts: &[WRITE_1, WRITE_2, READ],
        takers: &[1],
        takeovers: 2,
        walls: ENDS,
        ..Setup::PLAIN
    }
}

/// A member is away while what it holds is replaced by what lasts for a moment, and comes back at any time.
pub(super) fn ended_while_a_member_is_away() -> Setup {
    Setup {
        name: "ended while a member is away",
        born: Born::Key,
        settled: 1,
        settled_apart: &[(0, 2)],
        attempts: &[WRITE_1, WRITE_2, READ],
        takers: &[2],
        takeovers: 2,
        walls: ENDS,
        ..Setup::PLAIN
    }
}

/// A member's process ends, and another begins in its place, around the end of what lasts for a moment.
pub(super) fn ended_beside_a_peer_that_is_reborn() -> Setup {
    Setup {
        name: "ended beside a peer that is reborn",
        born: Born::Key,
        settled: 1,
        attempts: &[WRITE_1, WRITE_2],
        takers: &[1, 2],
        takeovers: 2,
        restarters: &[2],
        restarts: 1,
        walls: ENDS,
        ..Setup::PLAIN
    }
}

/// Another member takes over, at any time before or after the end, while the owner writes that down.
pub(super) fn ended_while_taken_over() -> Setup {
    Setup {
        name: "ended while taken over",
        attempts: &[WRITE_1, WRITE_2, READ],
        settled: 1,
        takers: &[1, 2],
        takeovers: 2,
        walls: ENDS,
        ..Setup::PLAIN
    }
}
