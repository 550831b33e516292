//! Who is next: how objects that serve small and large requests keep the large ones from waiting for ever.
//!
//! A writer needs a moment without readers, and somebody who wants ten permits a moment when ten are free; if newcomers
//! went in wherever they fit, neither might ever come. So the first one who can't go in stands at the head of the line,
//! and until it has been served all others, newcomers included, wait behind it. Only the head has a place in shared
//! memory. When it has been served (or gives up, or dies), whoever looks next and can't go in is the new head: the
//! order of the rest is open, but everybody who waits becomes the head sooner or later.
//!
//! Those behind wait for the head's process only; it is the head that watches those for whom the object waits.

use std::sync::atomic::{AtomicU32, Ordering};

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::ledger::Verdict;
use crate::presence::{Board, Seat};

/// The head of the line, as part of a ledger's state. All zero: nobody waits.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct Line {
    seat: u32,
    ticket: u32,
}

/// One who may have to wait: its ticket, and what it knows of its place.
pub(super) struct Ticket {
    number: u32,
    /// Whether it left its mark in the line, which it must take away again.
    pub(super) first: bool,
    /// For the ledger: whether it has slept for the ledger's lock.
    pub(super) slept: bool,
}

impl Ticket {
    pub(super) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        Ticket { number: NEXT.fetch_add(1, Ordering::Relaxed), first: false, slept: false }
    }
}

impl Line {
    /// Whether it is `ticket`'s turn; otherwise the process of the one before it. `changed` is set if a dead head was
    /// taken away.
    pub(super) fn is_turn_of(&mut self, ticket: &Ticket, board: &Board, changed: &mut bool) -> Result<(), Seat> {
        match Seat::from_word(self.seat) {
            None => Ok(()),
            Some(seat) if seat == board.seat() => {
                if self.ticket == ticket.number && ticket.first {
                    Ok(())
                } else {
                    Err(seat)
                }
            }
            Some(seat) if board.is_dead(seat) => {
                board.tell(seat);
                *self = Line { seat: 0, ticket: 0 };
                *changed = true;
                Ok(())
            }
            Some(seat) => Err(seat),
        }
    }

    /// The ticket has been served, or is given up.
    pub(super) fn leave(&mut self, ticket: &mut Ticket, board: &Board) -> bool {
        let was_first =
            std::mem::take(&mut ticket.first) && self.seat == board.seat().bits() && self.ticket == ticket.number;
        if was_first {
            *self = Line { seat: 0, ticket: 0 };
        }
        was_first
    }

    /// What one says who can't go in. `turn` is what [`is_turn_of`](Self::is_turn_of) said, `until` are the processes
    /// on which it depends if it's its turn.
    pub(super) fn wait<R>(
        &mut self,
        ticket: &mut Ticket,
        board: &Board,
        turn: Result<(), Seat>,
        mut changed: bool,
        until: impl FnOnce() -> Vec<Seat>,
    ) -> Verdict<R> {
        let mut seats = match turn {
            Ok(()) => {
                if !ticket.first {
                    *self = Line { seat: board.seat().bits(), ticket: ticket.number };
                    ticket.first = true;
                    changed = true;
                }
                until()
            }
            Err(before) => vec![before],
        };
        // Our own end ends the wait anyway.
        seats.retain(|seat| *seat != board.seat());
        if changed { Verdict::ChangedWait(seats) } else { Verdict::Wait(seats) }
    }
}
