//! The transitions of one claim word: pure functions over one atomic, with nothing of memory or processes.
//!
//! The atomic's type comes from the parent module, so that the very same file runs over loom's atomics in
//! `tests/loom_claims.rs`. What the transitions mean, and who may perform them, stands at the head of `claims.rs`.
//!
//! Orderings: the successful transitions form one chain on one word. `send` releases and `start` acquires, so a worker
//! that may run a call sees what its parent did before; `finish` releases and `state` acquires the other way round.
//! Nothing else is published through the word, so nothing needs sequential consistency.

use super::{AtomicU64, ClaimState, Ordering};

const STATE_BITS: u32 = 2;
const STATE_MASK: u64 = (1 << STATE_BITS) - 1;

const FINISHED: u64 = 0;
const SENT: u64 = 1;
const STARTED: u64 = 2;
const REVOKED: u64 = 3;

pub(super) fn send(word: &AtomicU64, sequence: u64) {
    word.store(pack(sequence, SENT), Ordering::Release);
}

pub(super) fn start(word: &AtomicU64, sequence: u64) -> bool {
    step(word, sequence, SENT, STARTED)
}

pub(super) fn revoke(word: &AtomicU64, sequence: u64) -> bool {
    step(word, sequence, SENT, REVOKED)
}

pub(super) fn finish(word: &AtomicU64, sequence: u64) -> bool {
    step(word, sequence, STARTED, FINISHED)
}

pub(super) fn state(word: &AtomicU64, sequence: u64) -> ClaimState {
    let value = word.load(Ordering::Acquire);
    // A zero has never been used, whatever the sequence 0 would make of it.
    if value == 0 || value & !STATE_MASK != pack(sequence, 0) {
        return ClaimState::Unknown;
    }
    match value & STATE_MASK {
        SENT => ClaimState::Sent,
        STARTED => ClaimState::Started,
        REVOKED => ClaimState::Revoked,
        _ => ClaimState::Finished,
    }
}

/// Moves the call `sequence`, and no other, from one state to the next; whether it was this caller that did.
fn step(word: &AtomicU64, sequence: u64, from: u64, to: u64) -> bool {
    word.compare_exchange(pack(sequence, from), pack(sequence, to), Ordering::AcqRel, Ordering::Acquire).is_ok()
}

/// The shift drops the two highest bits of the sequence, everywhere alike.
fn pack(sequence: u64, state: u64) -> u64 {
    sequence << STATE_BITS | state
}
