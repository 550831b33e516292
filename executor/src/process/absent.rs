//! Stands in for the pool where there are no worker processes: it can't be made, so nothing of it can be called.

use std::convert::Infallible;
use std::sync::Arc;

use super::Config;
use crate::error::SubmitError;
use crate::executor::{Refused, Shutdown, Slot, Stats};
use crate::future::Terminated;
use crate::state::Call;

#[derive(Debug)]
pub(super) struct Pool {
    never: Infallible,
}

impl Pool {
    pub(super) fn new(_: Config) -> Arc<Self> {
        unreachable!("the builder has said that this platform is not supported")
    }

    pub(super) fn submit(&self, _: Call, _: Option<Slot>) -> Result<(), Refused> {
        match self.never {}
    }

    pub(super) fn try_reserve(&self) -> Result<Slot, SubmitError> {
        match self.never {}
    }

    pub(super) async fn reserve(&self) -> Result<Slot, SubmitError> {
        match self.never {}
    }

    pub(super) fn shut_down(&self, _: Shutdown) {
        match self.never {}
    }

    pub(super) fn terminated(&self) -> Terminated {
        match self.never {}
    }

    pub(super) fn poke(&self) {
        match self.never {}
    }

    pub(super) fn stats(&self) -> Stats {
        match self.never {}
    }
}
