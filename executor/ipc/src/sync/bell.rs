//! A word beside a ledger on which some sleep: rung for those changes that concern them, where the ledger's own version
//! would wake everybody at every change.
//!
//! It is rung *inside* of the ledger's step, before the change is committed. A waiter listens ([`heard`](Bell::heard))
//! before it looks at the state, under the same lock: so either its look sees the change, or the bell has been rung
//! since it listened, and its sleep doesn't begin. Killed between the ring and the wake-up, the ringer leaves a word
//! that differs from what the sleepers expect, which they find out by looking now and then.
//!
//! `tests/loom_bell.rs` runs it through the interleavings, with the slots of a [condition](super::condvar) and with a
//! barrier in small.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::object::{BODY, Object};
use crate::presence::{Board, Holder, Seat};
use crate::wait::{Change, Word, futex};

mod protocol;

/// The bell at one place of an object.
#[derive(Clone, Copy)]
pub(super) struct Bell<'a> {
    object: &'a Object,
    offset: usize,
    word: &'a AtomicU32,
}

impl<'a> Bell<'a> {
    pub(super) fn new(object: &'a Object, offset: usize) -> Self {
        Bell { object, offset, word: object.at(offset) }
    }

    pub(super) fn heard(self) -> u32 {
        protocol::heard(self.word)
    }

    /// Under the ledger's lock, before the commit.
    pub(super) fn ring(self) {
        protocol::ring(self.word);
    }

    /// After the commit.
    pub(super) fn wake_all(self) {
        futex::wake_all(self.word);
    }

    /// A sleep until it is rung, or one of those processes dies.
    pub(super) fn sleep(self, heard: u32, board: &Board, seats: impl IntoIterator<Item = Seat>) -> Change {
        let mut change = Change::of(self.object.segment(), BODY + self.offset, heard);
        for seat in seats {
            match board.look(seat) {
                Holder::Alive(word, alive) => {
                    change.holders.push((Word::new(board.segment(), board.offset(word)), alive));
                }
                // It has just died: a value that the word is not going to have makes the next attempt follow at once.
                Holder::Dead(_) => change.word.1 = heard.wrapping_sub(1),
            }
        }
        change
    }
}
