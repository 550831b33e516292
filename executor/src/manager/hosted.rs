//! Values of the user's own types as objects, and update functions: all of the user's code that runs in a server.
//!
//! `#[managed]` and `#[update]` register what they write at link time, as `#[task]` does, so that the server may be
//! another process of the same program. A panic of any of it is caught and becomes the error of that call.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::OnceLock;

use parking_lot::RwLock;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::Failure;
use super::object::{Answer, Cx, Flow, Object};
use super::proxy::Proxy;
use super::server::Making;
use super::wire::{self, Body};
use crate::panic;

/// What the kind of a user's type begins with, so that it is none of ours.
pub(super) const TYPE_PREFIX: &str = "type ";

/// The constructor that takes the value itself.
pub(super) const BY_VALUE: u64 = u64::MAX;

/// A type whose values a manager can hold: written by [`#[managed]`](macro@crate::managed) on its `impl`.
pub trait Managed: Sized + Send + Sync + 'static {
    /// What stands for a value of this type in other processes.
    type Proxy: Proxy;

    /// The name under which the server's program finds the type; unique in the program.
    const NAME: &'static str;

    /// All methods with their signatures, as text; two programs that differ in it refuse to work together.
    const SCHEMA: &'static str;

    /// Whether the method takes `&mut self`; `None` when there is none of the number.
    #[doc(hidden)]
    fn is_exclusive(method: u32) -> Option<bool>;

    #[doc(hidden)]
    fn call(&self, method: u32, arguments: &[u8], result: &mut Vec<u8>) -> Result<(), Failed>;

    #[doc(hidden)]
    fn call_mut(&mut self, method: u32, arguments: &[u8], result: &mut Vec<u8>) -> Result<(), Failed>;

    #[doc(hidden)]
    fn construct(constructor: u32, arguments: &[u8]) -> Result<Self, Failed>;

    #[doc(hidden)]
    fn decode(value: &[u8]) -> Result<Self, Failed>;
}

/// A type whose values can be behind the proxy `P` of a trait, in any manager of the program: written by
/// [`#[managed]`](macro@crate::managed) on the `impl` of the trait.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not registered for `{P}`",
    label = "a manager in another process would not find this type",
    note = "put `#[polypool::managed]` on the `impl` of the trait for this type"
)]
pub trait Implements<P>: Sized + Send + Sync + 'static {
    /// The name under which the server's program finds the type; unique in the program.
    const NAME: &'static str;

    #[doc(hidden)]
    fn decode(value: &[u8]) -> Result<Self, Failed>;
}

/// The proxy of a trait.
#[doc(hidden)]
pub trait OfTrait: Proxy {
    const SCHEMA: &'static str;
}

/// Why a call did not come to a result; for what the macro writes.
#[doc(hidden)]
#[derive(Debug)]
pub struct Failed(Failure);

impl Failed {
    pub fn unknown(method: u32) -> Self {
        Failed(Failure::UnknownMethod(method))
    }

    pub fn constructor(error: impl Display) -> Self {
        Failed(Failure::Constructor(error.to_string()))
    }

    pub fn not_data(name: &str) -> Self {
        Failed(Failure::Constructor(format!(
            "{name} can't be sent as a value: it is not `Serialize` and `DeserializeOwned` in the server's program"
        )))
    }
}

#[doc(hidden)]
pub fn arguments<A: DeserializeOwned>(bytes: &[u8]) -> Result<A, Failed> {
    wire::decode(bytes).map_err(|why| Failed(Failure::Codec(format!("the argument could not be decoded: {why}"))))
}

#[doc(hidden)]
pub fn result<R: Serialize + ?Sized>(value: &R, bytes: &mut Vec<u8>) -> Result<(), Failed> {
    wire::encode_into(value, bytes)
        .map_err(|why| Failed(Failure::Codec(format!("the result could not be encoded: {why}"))))
}

/// Decodes a value of a type that may or may not be data; which of the two is decided where the type is known.
#[doc(hidden)]
#[allow(missing_debug_implementations)]
pub struct Value<T>(std::marker::PhantomData<T>);

impl<T> Value<T> {
    #[must_use = "it has no effect but its result"]
    pub fn of() -> Self {
        Value(std::marker::PhantomData)
    }
}

#[doc(hidden)]
pub trait IsData<T> {
    fn decode_value(&self, bytes: &[u8], name: &str) -> Result<T, Failed>;
}

impl<T: DeserializeOwned> IsData<T> for Value<T> {
    fn decode_value(&self, bytes: &[u8], _name: &str) -> Result<T, Failed> {
        arguments(bytes)
    }
}

#[doc(hidden)]
pub trait IsNoData<T> {
    fn decode_value(&self, bytes: &[u8], name: &str) -> Result<T, Failed>;
}

impl<T> IsNoData<T> for &Value<T> {
    fn decode_value(&self, _bytes: &[u8], name: &str) -> Result<T, Failed> {
        Err(Failed::not_data(name))
    }
}

/// An entry of the link-time registry of managed types.
#[doc(hidden)]
#[derive(Clone, Copy, Debug)]
pub struct ManagedRegistration {
    name: &'static str,
    schema: &'static str,
    make: fn(u64, &[u8]) -> Result<Made, Failed>,
}

impl ManagedRegistration {
    #[must_use = "it has no effect but its result"]
    pub const fn of<T: Managed>() -> Self {
        ManagedRegistration { name: T::NAME, schema: T::SCHEMA, make: make_one::<T> }
    }

    /// A type that stands behind the proxy of a trait.
    #[must_use = "it has no effect but its result"]
    pub const fn of_implementor<T: Implements<P>, P: OfTrait>(make: fn(u64, &[u8]) -> Result<Made, Failed>) -> Self {
        ManagedRegistration { name: T::NAME, schema: P::SCHEMA, make }
    }

    fn make(&self, making: &Making<'_>) -> Result<Box<dyn Object>, Failure> {
        if self.schema != making.schema {
            return Err(Failure::Schema { found: self.schema.to_owned() });
        }
        match panic::catch(|| (self.make)(making.constructor, making.arguments)) {
            Ok(Ok(Made(object))) => Ok(object),
            Ok(Err(Failed(failure))) => Err(failure),
            Err(report) => Err(Failure::Panicked(report)),
        }
    }
}

/// A new object.
#[doc(hidden)]
#[allow(missing_debug_implementations)]
pub struct Made(Box<dyn Object>);

/// What the macro writes makes objects by this.
#[doc(hidden)]
pub fn made<T: Managed>(value: Result<T, Failed>) -> Result<Made, Failed> {
    value.map(|value| Made(host(value)))
}

/// All managed types of this program.
#[doc(hidden)]
#[linkme::distributed_slice]
pub static MANAGED: [ManagedRegistration];

fn make_one<T: Managed>(constructor: u64, arguments: &[u8]) -> Result<Made, Failed> {
    made(match u32::try_from(constructor) {
        Ok(constructor) => T::construct(constructor, arguments),
        Err(_) => T::decode(arguments),
    })
}

/// Makes an object of a value.
pub(super) fn host<T: Managed>(value: T) -> Box<dyn Object> {
    Box::new(Hosted(RwLock::new(value)))
}

/// Makes an object of one of the program's managed types.
pub(super) fn make(making: &Making<'_>) -> Result<Box<dyn Object>, Failure> {
    static BY_NAME: OnceLock<BTreeMap<&'static str, ManagedRegistration>> = OnceLock::new();
    let unknown = || Failure::UnknownType(making.kind.to_owned());
    let name = making.kind.strip_prefix(TYPE_PREFIX).ok_or_else(unknown)?;
    let types = BY_NAME.get_or_init(|| MANAGED.iter().map(|entry| (entry.name, *entry)).collect());
    types.get(name).ok_or_else(unknown)?.make(making)
}

/// A value of the user's. Calls of `&self` methods run side by side, those of `&mut self` methods alone.
struct Hosted<T>(RwLock<T>);

impl<T: Managed> Object for Hosted<T> {
    fn call(&self, method: u32, arguments: &[u8], cx: &Cx<'_>) -> Answer {
        let exclusive = T::is_exclusive(method).ok_or(Failure::UnknownMethod(method))?;
        let mut body = Body::new();
        let called = inside(cx, || {
            if exclusive {
                self.0.write().call_mut(method, arguments, body.bytes())
            } else {
                self.0.read().call(method, arguments, body.bytes())
            }
        });
        match called {
            Ok(Ok(())) => Ok(Flow::Done(body)),
            Ok(Err(Failed(failure))) => Err(failure),
            Err(report) => Err(Failure::Panicked(report)),
        }
    }
}

// ---- Updates --------------------------------------------------------------------------------------------------------

/// A step that a server makes with a value, whole or not at all: written by [`#[update]`](macro@crate::update).
///
/// A closure can't travel to the server, so the step is a named function, and its arguments are data, as with a
/// [`Task`](crate::Task).
pub trait Update: Serialize + DeserializeOwned + Send + 'static {
    /// The value it changes; in a dict, an `Option` of it, which is `None` while the key is absent.
    type Target: Serialize + DeserializeOwned;

    /// What it returns to the caller.
    type Output: Serialize + DeserializeOwned + Send + 'static;

    /// The name under which the server's program finds the function; unique in the program.
    const NAME: &'static str;

    /// The signature as text; two programs whose functions of one name differ in it refuse each other's updates.
    const SIGNATURE: &'static str;

    /// Makes the step.
    fn apply(self, target: &mut Self::Target) -> Self::Output;
}

/// An entry of the link-time registry of updates.
#[doc(hidden)]
#[derive(Clone, Copy, Debug)]
pub struct UpdateRegistration {
    name: &'static str,
    signature: &'static str,
    apply: fn(&[u8], &[u8]) -> Result<Applied, Failed>,
}

impl UpdateRegistration {
    #[must_use = "it has no effect but its result"]
    pub const fn of<U: Update>() -> Self {
        UpdateRegistration { name: U::NAME, signature: U::SIGNATURE, apply: apply_one::<U> }
    }
}

/// What an update has made: the new value and the output, both encoded.
#[derive(Debug)]
pub(super) struct Applied {
    pub(super) value: Vec<u8>,
    pub(super) output: Vec<u8>,
}

/// All updates of this program.
#[doc(hidden)]
#[linkme::distributed_slice]
pub static UPDATES: [UpdateRegistration];

fn apply_one<U: Update>(old: &[u8], update: &[u8]) -> Result<Applied, Failed> {
    let update: U = arguments(update)?;
    let mut target: U::Target = wire::decode(old)
        .map_err(|why| Failed(Failure::Codec(format!("the value could not be decoded for the update: {why}"))))?;
    let output = update.apply(&mut target);
    let mut applied = Applied { value: Vec::new(), output: Vec::new() };
    result(&target, &mut applied.value)?;
    result(&output, &mut applied.output)?;
    Ok(applied)
}

/// An update on its way: what to call, and with what.
#[derive(Clone, Copy)]
pub(super) struct UpdateCall<'a> {
    pub(super) name: &'a str,
    pub(super) signature: &'a str,
    pub(super) arguments: &'a [u8],
}

impl UpdateCall<'_> {
    /// Makes the step with an encoded value. Whatever goes wrong, the value in the server stays as it is.
    pub(super) fn apply(&self, cx: &Cx<'_>, old: &[u8]) -> Result<Applied, Failure> {
        static BY_NAME: OnceLock<BTreeMap<&'static str, UpdateRegistration>> = OnceLock::new();
        let updates = BY_NAME.get_or_init(|| UPDATES.iter().map(|entry| (entry.name, *entry)).collect());
        let found = updates.get(self.name).filter(|found| found.signature == self.signature);
        let found = found.ok_or_else(|| Failure::UnknownUpdate(self.name.to_owned()))?;
        match inside(cx, || (found.apply)(old, self.arguments)) {
            Ok(Ok(applied)) => Ok(applied),
            Ok(Err(Failed(failure))) => Err(failure),
            Err(report) => Err(Failure::Panicked(report)),
        }
    }
}

// ---- Calls from the inside ------------------------------------------------------------------------------------------

thread_local! {
    /// The objects in whose methods this thread is, by server and number.
    static INSIDE: RefCell<Vec<(u64, u64)>> = const { RefCell::new(Vec::new()) };
}

/// Runs the user's code of an object.
fn inside<R>(cx: &Cx<'_>, code: impl FnOnce() -> R) -> Result<R, crate::error::PanicReport> {
    struct Leave;
    impl Drop for Leave {
        fn drop(&mut self) {
            INSIDE.with_borrow_mut(|inside| inside.pop());
        }
    }
    INSIDE.with_borrow_mut(|inside| inside.push((cx.server.generation, cx.slot.id)));
    let _leave = Leave;
    panic::catch(code)
}

/// Whether this thread is in a method of that object, so that a call of it would wait for itself.
pub(super) fn is_inside(generation: u64, object: u64) -> bool {
    INSIDE.with_borrow(|inside| inside.contains(&(generation, object)))
}

/// Whether two types or two updates of this program have one name.
pub(super) fn duplicate() -> Option<&'static str> {
    let twice = |mut names: Vec<&'static str>| {
        names.sort_unstable();
        names.windows(2).find(|pair| pair[0] == pair[1]).map(|pair| pair[0])
    };
    twice(MANAGED.iter().map(|entry| entry.name).collect())
        .or_else(|| twice(UPDATES.iter().map(|entry| entry.name).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constructors_of_another_schema_are_not_called() {
        let make = |_, _: &[u8]| panic!("it was called");
        let odd = ManagedRegistration { name: "odd", schema: "odd(u8)", make };
        let making = Making { kind: "type odd", schema: "odd(u16)", constructor: 0, arguments: &[0; 2] };
        assert!(matches!(odd.make(&making), Err(Failure::Schema { found }) if found == "odd(u8)"));
        let making = Making { schema: "odd(u8)", ..making };
        assert!(matches!(odd.make(&making), Err(Failure::Panicked(_))));
    }
}
