//! Deliberate faults, with which the model check shows that it would notice them. They exist in
//! tests only: elsewhere `on` is a constant and costs nothing.

/// One fault of the machines. Faults of the environment are in the model's world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(test), allow(dead_code, reason = "a fault is switched on by tests only"))]
pub(super) enum Mutant {
    /// An executor's vote alone counts as a quorum.
    LoneVote,
    /// A proposal that left is abandoned when its execution is reported as failed.
    AbandonProposal,
    /// The result of an abandoned execution is proposed after all.
    LateResult,
    /// Forgotten requests leave no floor.
    NoFloor,
    /// An abandoned number is given out again.
    ReuseNumber,
    /// A takeover does not wait for promises.
    SkipPromises,
    /// A copy votes below what it promised.
    VoteBelowPromise,
    /// Forgetting leaves no watermark.
    NoWatermark,
    /// The open configuration is proposed before its seal is chosen.
    OpenEarly,
    /// A response leaves with its proposal.
    ReleaseEarly,
    /// A seal is chosen by the new members.
    SealByNew,
    /// A takeover that finds a seal covers the old members only.
    CoverOld,
    /// A takeover that finds a seal covers the new members only.
    CoverNew,
    /// Reads are not confirmed.
    Unconfirmed,
    /// An executor runs on any record that it holds.
    AnyBase,
    /// A takeover serves what it found before it is chosen again.
    NoReassert,
    /// A takeover takes the highest number, whatever its ballot.
    NumberFirst,
    /// A takeover's round heeds the highest known one, but not this process's own.
    ReuseBallot,
    /// A takeover's round heeds what was heard, not what every session is drawn with.
    BelowDrawn,
    /// What a key names is begun without asking anybody first.
    BeginUnprepared,
    /// A session that a key names begins once a majority of its future members has promised.
    BeginAtMembers,
    /// A peer that is no member remembers no birth.
    ForgetBirth,
    /// A change that was refused is taken back before all have promised that may hold it.
    WithdrawEarly,
    /// A birth does not close the configurations that it was begun in before.
    KeepOpen,
    /// Two peers may stay silent, however short a time.
    MissTwo,
    /// A peer that was just reborn counts as a witness.
    RebornWitness,
    /// A young peer counts as a witness, although nobody vouches for it.
    YoungWitness,
    /// Of two members of which one is gone, none is needed.
    NoSurvivor,
    /// Of two members of which one is gone, either's vote is enough, also one that the dead one cast.
    DeadVote,
}

#[cfg(not(test))]
pub(super) const fn on(_: Mutant) -> bool {
    false
}

#[cfg(test)]
std::thread_local! {
    static CURRENT: core::cell::Cell<Option<Mutant>> = const { core::cell::Cell::new(None) };
}

#[cfg(test)]
pub(super) fn on(mutant: Mutant) -> bool {
    CURRENT.get() == Some(mutant)
}

/// Switches one fault on, or all off, for this thread.
#[cfg(test)]
pub(super) fn set(mutant: Option<Mutant>) {
    CURRENT.set(mutant);
}
