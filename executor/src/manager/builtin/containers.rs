//! Dict, namespace, list, set and value: what holds values and has nobody wait.

use std::any::type_name;
use std::collections::{BTreeMap, HashMap};
use std::marker::PhantomData;
use std::sync::Arc;

use parking_lot::Mutex;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::proxy;
use super::whole::{self, Place, Sortable, WholeDict, WholeList, WholeSet};
use crate::manager::Data;
use crate::manager::error::{Failure, ManagerError};
use crate::manager::hosted::{Update, UpdateCall};
use crate::manager::object::{Answer, Cx, Flow, Object};
use crate::manager::proxy::{Call, Remote, Source};
use crate::manager::wire::{self, Body, Fields, Request, decode_result};

/// How MessagePack writes that there is nothing; what an update of an absent key sees and may leave.
const NIL: &[u8] = &[0xC0];

mod method {
    pub(super) const GET: u32 = 1;
    pub(super) const INSERT: u32 = 2;
    pub(super) const REMOVE: u32 = 3;
    pub(super) const CONTAINS: u32 = 4;
    pub(super) const LEN: u32 = 5;
    pub(super) const KEYS: u32 = 6;
    pub(super) const VALUES: u32 = 7;
    pub(super) const ITEMS: u32 = 8;
    pub(super) const CLEAR: u32 = 9;
    pub(super) const INSERT_IF_ABSENT: u32 = 10;
    pub(super) const COMPARE_AND_SWAP: u32 = 11;
    pub(super) const UPDATE: u32 = 12;
    pub(super) const EXTEND: u32 = 13;
    pub(super) const POP: u32 = 14;
    pub(super) const PUSH: u32 = 15;
    pub(super) const SET: u32 = 16;
    pub(super) const SLICE: u32 = 17;
    pub(super) const REVERSE: u32 = 18;
    pub(super) const INDEX: u32 = 19;
    pub(super) const COUNT: u32 = 20;
    pub(super) const REMOVE_VALUE: u32 = 21;
    pub(super) const SWAP: u32 = 22;
    pub(super) const UPDATE_ALL: u32 = 23;
    pub(super) const SORT: u32 = 24;
}

fn done(body: Body) -> Answer {
    Ok(Flow::Done(body))
}

/// The update at the beginning of a request.
fn read_update<'a>(fields: &mut Fields<'a>) -> Result<UpdateCall<'a>, Failure> {
    Ok(UpdateCall { name: fields.text()?, signature: fields.text()?, arguments: fields.sized()? })
}

/// A flag, and a part if it is set.
fn read_optional<'a>(fields: &mut Fields<'a>) -> Result<Option<&'a [u8]>, Failure> {
    if fields.flag()? { fields.sized().map(Some) } else { Ok(None) }
}

// ---- The server's side ----------------------------------------------------------------------------------------------

/// Keys and values, in the order in which the keys came.
#[derive(Default)]
pub(super) struct Dict {
    entries: Mutex<Entries>,
}

#[derive(Default)]
struct Entries {
    by_key: HashMap<Arc<[u8]>, (u64, Vec<u8>)>,
    order: BTreeMap<u64, Arc<[u8]>>,
    next: u64,
}

impl Entries {
    fn get(&self, key: &[u8]) -> Option<&[u8]> {
        self.by_key.get(key).map(|(_, value)| value.as_slice())
    }

    fn insert(&mut self, key: &[u8], value: Vec<u8>) -> Option<Vec<u8>> {
        if let Some((_, old)) = self.by_key.get_mut(key) {
            return Some(std::mem::replace(old, value));
        }
        let key: Arc<[u8]> = key.into();
        self.by_key.insert(key.clone(), (self.next, value));
        self.order.insert(self.next, key);
        self.next += 1;
        None
    }

    fn remove(&mut self, key: &[u8]) -> Option<Vec<u8>> {
        let (place, value) = self.by_key.remove(key)?;
        self.order.remove(&place);
        Some(value)
    }

    fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.order.values().filter_map(|key| Some((&**key, self.get(key)?)))
    }

    /// Removes the key that came last.
    fn pop(&mut self) -> Option<(Arc<[u8]>, Vec<u8>)> {
        let (_, key) = self.order.last_key_value()?;
        let key = key.clone();
        let value = self.remove(&key)?;
        Some((key, value))
    }

    /// Makes them what they are to be: keys that stay have the places they had.
    fn become_all<'a>(&mut self, items: impl Iterator<Item = (&'a [u8], &'a [u8])>) {
        let mut old = std::mem::take(self);
        let mut added = Vec::new();
        self.next = old.next;
        for (key, value) in items {
            match old.by_key.remove(key) {
                Some((place, _)) => {
                    let key: Arc<[u8]> = key.into();
                    self.by_key.insert(key.clone(), (place, value.to_vec()));
                    self.order.insert(place, key);
                }
                None => added.push((key, value)),
            }
        }
        for (key, value) in added {
            self.insert(key, value.to_vec());
        }
    }
}

impl Object for Dict {
    fn call(&self, method: u32, arguments: &[u8], cx: &Cx<'_>) -> Answer {
        let mut fields = Fields(arguments);
        let mut entries = self.entries.lock();
        match method {
            method::GET => done(Body::new().optional(entries.get(fields.sized()?))),
            method::INSERT => {
                let (key, value) = (fields.sized()?, fields.rest());
                done(Body::new().optional(entries.insert(key, value.to_vec()).as_deref()))
            }
            method::REMOVE => done(Body::new().optional(entries.remove(fields.sized()?).as_deref())),
            method::CONTAINS => done(Body::new().flag(entries.get(fields.sized()?).is_some())),
            method::LEN => done(Body::new().number(entries.by_key.len() as u64)),
            method::KEYS => done(entries.iter().fold(Body::new(), |body, (key, _)| body.sized(key))),
            method::VALUES => done(entries.iter().fold(Body::new(), |body, (_, value)| body.sized(value))),
            method::ITEMS => done(entries.iter().fold(Body::new(), |body, (key, value)| body.sized(key).sized(value))),
            method::CLEAR => {
                *entries = Entries::default();
                done(Body::new())
            }
            method::INSERT_IF_ABSENT => {
                let (key, value) = (fields.sized()?, fields.rest());
                let existing = entries.get(key);
                let body = Body::new().optional(existing);
                if existing.is_none() {
                    entries.insert(key, value.to_vec());
                }
                done(body)
            }
            method::COMPARE_AND_SWAP => {
                let (key, expected, new) = (fields.sized()?, read_optional(&mut fields)?, read_optional(&mut fields)?);
                if entries.get(key) != expected {
                    return done(Body::new().flag(false).optional(entries.get(key)));
                }
                match new {
                    Some(new) => entries.insert(key, new.to_vec()),
                    None => entries.remove(key),
                };
                done(Body::new().flag(true).flag(false))
            }
            method::UPDATE => {
                let update = read_update(&mut fields)?;
                let key = fields.sized()?;
                let applied = update.apply(cx, entries.get(key).unwrap_or(NIL))?;
                if applied.value == NIL {
                    entries.remove(key);
                } else {
                    entries.insert(key, applied.value);
                }
                done(Body::new().rest(&applied.output))
            }
            method::EXTEND => {
                // First everything is read, so that a request that is cut off changes nothing.
                let mut items = Vec::new();
                while !fields.is_empty() {
                    items.push((fields.sized()?, fields.sized()?));
                }
                for (key, value) in items {
                    entries.insert(key, value.to_vec());
                }
                done(Body::new())
            }
            method::POP => {
                let Some((key, value)) = entries.pop() else { return done(Body::new().flag(false)) };
                done(Body::new().flag(true).sized(&key).sized(&value))
            }
            method::UPDATE_ALL => {
                let update = read_update(&mut fields)?;
                let applied = update.apply(cx, &whole::map(entries.by_key.len(), entries.iter()))?;
                let parts = whole::split_map(&applied.value)?;
                entries.become_all(parts.chunks_exact(2).map(|pair| (pair[0], pair[1])));
                done(Body::new().rest(&applied.output))
            }
            method => Err(Failure::UnknownMethod(method)),
        }
    }
}

/// Values in a row.
#[derive(Default)]
pub(super) struct List {
    items: Mutex<Vec<Vec<u8>>>,
}

/// The index as one of an element of a list of this length.
fn index(number: u64, len: usize) -> Result<usize, Failure> {
    usize::try_from(number)
        .ok()
        .filter(|index| *index < len)
        .ok_or(Failure::OutOfRange { index: number, len: len as u64 })
}

impl Object for List {
    fn call(&self, method: u32, arguments: &[u8], cx: &Cx<'_>) -> Answer {
        let mut fields = Fields(arguments);
        let mut items = self.items.lock();
        let len = items.len();
        match method {
            method::GET => {
                let item = usize::try_from(fields.number()?).ok().and_then(|index| items.get(index));
                done(Body::new().optional(item.map(Vec::as_slice)))
            }
            method::SET => {
                let at = index(fields.number()?, len)?;
                done(Body::new().rest(&std::mem::replace(&mut items[at], fields.rest().to_vec())))
            }
            method::PUSH => {
                items.push(fields.rest().to_vec());
                done(Body::new())
            }
            method::POP => done(Body::new().optional(items.pop().as_deref())),
            method::INSERT => {
                let at = index(fields.number()?, len + 1)?;
                items.insert(at, fields.rest().to_vec());
                done(Body::new())
            }
            method::REMOVE => {
                let at = index(fields.number()?, len)?;
                done(Body::new().rest(&items.remove(at)))
            }
            method::LEN => done(Body::new().number(len as u64)),
            method::SLICE => {
                let (from, to) = (fields.number()?, fields.number()?);
                let to = usize::try_from(to).unwrap_or(usize::MAX).min(len);
                let from = usize::try_from(from).unwrap_or(usize::MAX).min(to);
                done(items[from..to].iter().fold(Body::new(), |body, item| body.sized(item)))
            }
            method::EXTEND => {
                let mut more = Vec::new();
                while !fields.is_empty() {
                    more.push(fields.sized()?.to_vec());
                }
                items.append(&mut more);
                done(Body::new())
            }
            method::CLEAR => {
                *items = Vec::new();
                done(Body::new())
            }
            method::REVERSE => {
                items.reverse();
                done(Body::new())
            }
            method::INDEX => {
                let wanted = fields.rest();
                match items.iter().position(|item| item == wanted) {
                    Some(at) => done(Body::new().flag(true).number(at as u64)),
                    None => done(Body::new().flag(false)),
                }
            }
            method::COUNT => {
                let wanted = fields.rest();
                done(Body::new().number(items.iter().filter(|item| *item == wanted).count() as u64))
            }
            method::REMOVE_VALUE => {
                let wanted = fields.rest();
                let at = items.iter().position(|item| item == wanted);
                if let Some(at) = at {
                    items.remove(at);
                }
                done(Body::new().flag(at.is_some()))
            }
            method::COMPARE_AND_SWAP => {
                let (at, expected, new) = (index(fields.number()?, len)?, fields.sized()?, fields.sized()?);
                if items[at] == expected {
                    items[at] = new.to_vec();
                    done(Body::new().flag(true))
                } else {
                    done(Body::new().flag(false).rest(&items[at]))
                }
            }
            method::UPDATE => {
                let update = read_update(&mut fields)?;
                let at = index(fields.number()?, len)?;
                let applied = update.apply(cx, &items[at])?;
                items[at] = applied.value;
                done(Body::new().rest(&applied.output))
            }
            method::UPDATE_ALL => {
                let update = read_update(&mut fields)?;
                let applied = update.apply(cx, &whole::sequence(items.iter().map(Vec::as_slice)))?;
                *items = whole::split_sequence(&applied.value)?.into_iter().map(<[u8]>::to_vec).collect();
                done(Body::new().rest(&applied.output))
            }
            method::SORT => {
                let descending = fields.flag()?;
                // Before anything is moved, as there may be one without an order.
                let places = items.iter().map(|item| Place::of(item)).collect::<Result<Vec<_>, _>>()?;
                let mut sorted: Vec<_> = places.into_iter().zip(std::mem::take(&mut *items)).collect();
                sorted.sort_by(|(a, _), (b, _)| if descending { b.compare(a) } else { a.compare(b) });
                *items = sorted.into_iter().map(|(_, item)| item).collect();
                done(Body::new())
            }
            method => Err(Failure::UnknownMethod(method)),
        }
    }
}

/// Values, each once.
#[derive(Default)]
pub(super) struct Set {
    entries: Mutex<Entries>,
}

impl Object for Set {
    fn call(&self, method: u32, arguments: &[u8], cx: &Cx<'_>) -> Answer {
        let mut fields = Fields(arguments);
        let mut entries = self.entries.lock();
        match method {
            method::POP => done(Body::new().optional(entries.pop().as_ref().map(|(value, _)| &**value))),
            method::UPDATE_ALL => {
                let update = read_update(&mut fields)?;
                let values: Vec<&[u8]> = entries.iter().map(|(value, _)| value).collect();
                let applied = update.apply(cx, &whole::sequence(values.into_iter()))?;
                let parts = whole::split_sequence(&applied.value)?;
                entries.become_all(parts.into_iter().map(|value| (value, &[][..])));
                done(Body::new().rest(&applied.output))
            }
            method::INSERT => done(Body::new().flag(entries.insert(fields.rest(), Vec::new()).is_none())),
            method::REMOVE => done(Body::new().flag(entries.remove(fields.rest()).is_some())),
            method::CONTAINS => done(Body::new().flag(entries.get(fields.rest()).is_some())),
            method::LEN => done(Body::new().number(entries.by_key.len() as u64)),
            method::ITEMS => done(entries.iter().fold(Body::new(), |body, (value, _)| body.sized(value))),
            method::CLEAR => {
                *entries = Entries::default();
                done(Body::new())
            }
            method::EXTEND => {
                let mut more = Vec::new();
                while !fields.is_empty() {
                    more.push(fields.sized()?);
                }
                let added = more.into_iter().filter(|value| entries.insert(value, Vec::new()).is_none()).count();
                done(Body::new().number(added as u64))
            }
            method => Err(Failure::UnknownMethod(method)),
        }
    }
}

/// One value.
pub(super) struct Value {
    value: Mutex<Vec<u8>>,
}

impl Value {
    pub(super) fn new(value: Vec<u8>) -> Self {
        Value { value: Mutex::new(value) }
    }
}

impl Object for Value {
    fn call(&self, method: u32, arguments: &[u8], cx: &Cx<'_>) -> Answer {
        let mut fields = Fields(arguments);
        let mut value = self.value.lock();
        match method {
            method::GET => done(Body::new().rest(&value)),
            method::SET => {
                *value = fields.rest().to_vec();
                done(Body::new())
            }
            method::SWAP => done(Body::new().rest(&std::mem::replace(&mut *value, fields.rest().to_vec()))),
            method::COMPARE_AND_SWAP => {
                let (expected, new) = (fields.sized()?, fields.sized()?);
                if *value == expected {
                    *value = new.to_vec();
                    done(Body::new().flag(true))
                } else {
                    done(Body::new().flag(false).rest(&value))
                }
            }
            method::UPDATE => {
                let update = read_update(&mut fields)?;
                let applied = update.apply(cx, &value)?;
                *value = applied.value;
                done(Body::new().rest(&applied.output))
            }
            method => Err(Failure::UnknownMethod(method)),
        }
    }
}

// ---- The client's side ----------------------------------------------------------------------------------------------

type Decoded<R> = Result<R, ManagerError>;

fn cut(failure: Failure) -> ManagerError {
    failure.explain("")
}

fn unit(_result: &[u8], _source: &Source<'_>) -> Decoded<()> {
    Ok(())
}

fn flag(result: &[u8], _source: &Source<'_>) -> Decoded<bool> {
    Fields(result).flag().map_err(cut)
}

fn count(result: &[u8], _source: &Source<'_>) -> Decoded<usize> {
    let number = Fields(result).number().map_err(cut)?;
    Ok(usize::try_from(number).unwrap_or(usize::MAX))
}

fn value<T: DeserializeOwned>(result: &[u8], _source: &Source<'_>) -> Decoded<T> {
    decode_result(result)
}

fn optional<T: DeserializeOwned>(result: &[u8], _source: &Source<'_>) -> Decoded<Option<T>> {
    let mut fields = Fields(result);
    if fields.flag().map_err(cut)? { decode_result(fields.rest()).map(Some) } else { Ok(None) }
}

fn sequence<T: DeserializeOwned>(result: &[u8], _source: &Source<'_>) -> Decoded<Vec<T>> {
    let mut fields = Fields(result);
    let mut items = Vec::new();
    while !fields.is_empty() {
        items.push(decode_result(fields.sized().map_err(cut)?)?);
    }
    Ok(items)
}

fn pair<K: DeserializeOwned, V: DeserializeOwned>(fields: &mut Fields<'_>) -> Decoded<(K, V)> {
    let (key, value) = (fields.sized().map_err(cut)?, fields.sized().map_err(cut)?);
    Ok((decode_result(key)?, decode_result(value)?))
}

/// What was swapped: nothing, or the value that was found instead of the expected one.
fn swapped<T: DeserializeOwned>(result: &[u8], _source: &Source<'_>) -> Decoded<Result<(), T>> {
    let mut fields = Fields(result);
    if fields.flag().map_err(cut)? { Ok(Ok(())) } else { decode_result(fields.rest()).map(Err) }
}

fn update_request<U: Update>(update: &U) -> Decoded<Request> {
    Request::new().sized(U::NAME.as_bytes()).sized(U::SIGNATURE.as_bytes()).value(update)
}

/// An optional value, as [`read_optional`] reads it.
fn put_optional<T: Serialize>(mut request: Request, value: Option<&T>) -> Decoded<Request> {
    request.bytes().push(u8::from(value.is_some()));
    match value {
        Some(value) => request.value(value),
        None => Ok(request),
    }
}

/// Each value with its length before it.
fn put_all<'a, T: Serialize + 'a>(values: impl IntoIterator<Item = &'a T>) -> Decoded<Request> {
    values.into_iter().try_fold(Request::new(), Request::value)
}

/// A map in a manager, as Python's `Manager().dict()`; its keys stay in the order in which they were inserted.
///
/// Values are copies: changing what [`get`](Self::get) returned changes nothing in the manager. For a step that reads
/// and writes there are [`update`](Self::update), [`compare_and_swap`](Self::compare_and_swap) and
/// [`insert_if_absent`](Self::insert_if_absent); between `get` and [`insert`](Self::insert) others may do anything.
///
/// Keys are equal when their encodings are; so a key should not hold a `HashMap`, whose order is not the same twice.
#[must_use = "a proxy does nothing by itself"]
pub struct DictProxy<K, V> {
    remote: Remote,
    _types: PhantomData<fn() -> (K, V)>,
}

proxy!(DictProxy, format!("dict<{}, {}>", type_name::<K>(), type_name::<V>()), K, V);

impl<K: Data, V: Data> DictProxy<K, V> {
    fn keyed<R>(&self, method: u32, key: &K, decode: fn(&[u8], &Source<'_>) -> Decoded<R>) -> Call<R> {
        self.remote.request(method, Request::new().value(key), decode)
    }

    fn plain<R>(&self, method: u32, decode: fn(&[u8], &Source<'_>) -> Decoded<R>) -> Call<R> {
        self.remote.request(method, Ok(Request::new()), decode)
    }

    /// A copy of the value of a key.
    pub fn get(&self, key: &K) -> Call<Option<V>> {
        self.keyed(method::GET, key, optional)
    }

    /// Sets the value of a key; the result is the value it had.
    pub fn insert(&self, key: &K, value: &V) -> Call<Option<V>> {
        let request = Request::new().value(key).and_then(|request| request.last(value));
        self.remote.request(method::INSERT, request, optional)
    }

    /// Sets the value of a key that has none. The result is `None` if it was set, and otherwise the value that is
    /// there.
    pub fn insert_if_absent(&self, key: &K, value: &V) -> Call<Option<V>> {
        let request = Request::new().value(key).and_then(|request| request.last(value));
        self.remote.request(method::INSERT_IF_ABSENT, request, optional)
    }

    /// Sets the value of a key, or with `None` removes it, if it is what is expected, where `None` means that it is
    /// absent. Otherwise the result is an `Err` of what is there.
    pub fn compare_and_swap(&self, key: &K, expected: Option<&V>, new: Option<&V>) -> Call<Result<(), Option<V>>> {
        let request = Request::new()
            .value(key)
            .and_then(|request| put_optional(request, expected))
            .and_then(|request| put_optional(request, new));
        self.remote.request(method::COMPARE_AND_SWAP, request, |result, source| {
            let mut fields = Fields(result);
            if fields.flag().map_err(cut)? { Ok(Ok(())) } else { optional(fields.rest(), source).map(Err) }
        })
    }

    /// Changes the value of a key in the server, in one step that nobody can come between. The function gets `None` for
    /// an absent key, and may leave `None` in order to remove it. If it panics, everything stays as it was. (A value
    /// that is itself an `Option` that is `None`, or `()`, counts as absent here.)
    ///
    /// The function runs under the dict's lock: it should be short.
    pub fn update<U: Update<Target = Option<V>>>(&self, key: &K, update: U) -> Call<U::Output> {
        let request = update_request(&update).and_then(|request| request.value(key));
        self.remote.request(method::UPDATE, request, value)
    }

    /// Changes the whole dict in the server, in one step that nobody can come between: `if` this key is there, then
    /// that one. The function gets all keys and values, in a `HashMap` or a `BTreeMap`. If it panics, everything stays
    /// as it was. Keys that stay have the places that they had, new ones follow.
    ///
    /// It decodes and encodes everything, under the dict's lock: for large dicts [`update`](Self::update), of one key,
    /// is quicker.
    ///
    /// ```
    /// # polypool::worker_hook!();
    /// use std::collections::BTreeMap;
    /// use polypool::manager::Manager;
    ///
    /// /// Takes `n` from one account to another, if it is there.
    /// #[polypool::update]
    /// fn transfer(accounts: &mut BTreeMap<String, u64>, from: String, to: String, n: u64) -> bool {
    ///     let Some(left) = accounts.get(&from).and_then(|money| money.checked_sub(n)) else { return false };
    ///     accounts.insert(from, left);
    ///     *accounts.entry(to).or_default() += n;
    ///     true
    /// }
    ///
    /// # fn main() -> Result<(), polypool::manager::ManagerError> {
    /// let manager = Manager::in_thread()?;
    /// let accounts = manager.dict::<String, u64>().wait()?;
    /// accounts.insert(&"ann".to_owned(), &5).wait()?;
    /// let step = |n| transfer { from: "ann".to_owned(), to: "bob".to_owned(), n };
    /// assert!(accounts.update_all(step(3)).wait()?);
    /// assert!(!accounts.update_all(step(3)).wait()?);
    /// assert_eq!(accounts.values().wait()?, [2, 3]);
    /// # Ok(())
    /// # }
    /// ```
    pub fn update_all<U>(&self, update: U) -> Call<U::Output>
    where
        U: Update<Target: WholeDict<K, V>>,
    {
        self.remote.request(method::UPDATE_ALL, update_request(&update), value)
    }

    /// Removes a key; the result is the value it had.
    pub fn remove(&self, key: &K) -> Call<Option<V>> {
        self.keyed(method::REMOVE, key, optional)
    }

    /// Removes the key that was inserted last, as Python's `popitem`.
    pub fn pop(&self) -> Call<Option<(K, V)>> {
        self.plain(method::POP, |result, _| {
            let mut fields = Fields(result);
            if fields.flag().map_err(cut)? { pair(&mut fields).map(Some) } else { Ok(None) }
        })
    }

    /// Whether the key has a value.
    pub fn contains(&self, key: &K) -> Call<bool> {
        self.keyed(method::CONTAINS, key, flag)
    }

    /// How many keys there are.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> Call<usize> {
        self.plain(method::LEN, count)
    }

    /// A copy of all keys.
    pub fn keys(&self) -> Call<Vec<K>> {
        self.plain(method::KEYS, sequence)
    }

    /// A copy of all values.
    pub fn values(&self) -> Call<Vec<V>> {
        self.plain(method::VALUES, sequence)
    }

    /// A copy of everything, as it is at one moment.
    pub fn items(&self) -> Call<Vec<(K, V)>> {
        self.plain(method::ITEMS, |result, _| {
            let mut fields = Fields(result);
            let mut items = Vec::new();
            while !fields.is_empty() {
                items.push(pair(&mut fields)?);
            }
            Ok(items)
        })
    }

    /// Sets several keys in one step.
    pub fn extend<'a>(&self, items: impl IntoIterator<Item = (&'a K, &'a V)>) -> Call<()> {
        let request = items.into_iter().try_fold(Request::new(), |request, (key, value)| {
            request.value(key).and_then(|request| request.value(value))
        });
        self.remote.request(method::EXTEND, request, unit)
    }

    /// Removes everything.
    pub fn clear(&self) -> Call<()> {
        self.plain(method::CLEAR, unit)
    }
}

/// Attributes of any types in a manager, as Python's `Manager().Namespace()`.
#[must_use = "a proxy does nothing by itself"]
pub struct NamespaceProxy {
    remote: Remote,
    _types: PhantomData<()>,
}

proxy!(NamespaceProxy, "namespace".to_owned());

impl NamespaceProxy {
    /// A copy of an attribute. It is an error of the codec if it is of another type.
    pub fn get<T: Data>(&self, name: &str) -> Call<Option<T>> {
        self.remote.request(method::GET, Request::new().value(name), optional)
    }

    /// Sets an attribute.
    pub fn set<T: Data>(&self, name: &str, to: &T) -> Call<()> {
        let request = Request::new().value(name).and_then(|request| request.last(to));
        self.remote.request(method::INSERT, request, unit)
    }

    /// Sets an attribute that is not there. The result is `None` if it was set, and otherwise the value that is there.
    pub fn set_if_absent<T: Data>(&self, name: &str, to: &T) -> Call<Option<T>> {
        let request = Request::new().value(name).and_then(|request| request.last(to));
        self.remote.request(method::INSERT_IF_ABSENT, request, optional)
    }

    /// Changes an attribute in one step; see [`DictProxy::update`].
    pub fn update<T: Data, U: Update<Target = Option<T>>>(&self, name: &str, update: U) -> Call<U::Output> {
        let request = update_request(&update).and_then(|request| request.value(name));
        self.remote.request(method::UPDATE, request, value)
    }

    /// Removes an attribute; the result is whether it was there.
    pub fn remove(&self, name: &str) -> Call<bool> {
        self.remote.request(method::REMOVE, Request::new().value(name), flag)
    }

    /// The names of all attributes.
    pub fn names(&self) -> Call<Vec<String>> {
        self.remote.request(method::KEYS, Ok(Request::new()), sequence)
    }
}

/// A list in a manager, as Python's `Manager().list()`. Values are copies; see [`DictProxy`].
#[must_use = "a proxy does nothing by itself"]
pub struct ListProxy<T> {
    remote: Remote,
    _types: PhantomData<fn() -> T>,
}

proxy!(ListProxy, format!("list<{}>", type_name::<T>()), T);

impl<T: Data> ListProxy<T> {
    fn plain<R>(&self, method: u32, decode: fn(&[u8], &Source<'_>) -> Decoded<R>) -> Call<R> {
        self.remote.request(method, Ok(Request::new()), decode)
    }

    fn one<R>(&self, method: u32, item: &T, decode: fn(&[u8], &Source<'_>) -> Decoded<R>) -> Call<R> {
        self.remote.request(method, Request::new().last(item), decode)
    }

    /// A copy of an element; `None` beyond the end.
    pub fn get(&self, index: usize) -> Call<Option<T>> {
        self.remote.request(method::GET, Ok(Request::new().number(index as u64)), optional)
    }

    /// Sets an element; the result is what it was.
    ///
    /// # Errors
    /// [`ManagerError::OutOfRange`] beyond the end.
    pub fn set(&self, index: usize, item: &T) -> Call<T> {
        self.remote.request(method::SET, Request::new().number(index as u64).last(item), value)
    }

    /// Appends an element.
    pub fn push(&self, item: &T) -> Call<()> {
        self.one(method::PUSH, item, unit)
    }

    /// Appends several elements in one step.
    pub fn extend<'a>(&self, items: impl IntoIterator<Item = &'a T>) -> Call<()> {
        self.remote.request(method::EXTEND, put_all(items), unit)
    }

    /// Inserts an element before another one, or at the end.
    ///
    /// # Errors
    /// [`ManagerError::OutOfRange`] beyond the end.
    pub fn insert(&self, index: usize, item: &T) -> Call<()> {
        self.remote.request(method::INSERT, Request::new().number(index as u64).last(item), unit)
    }

    /// Removes the last element.
    pub fn pop(&self) -> Call<Option<T>> {
        self.plain(method::POP, optional)
    }

    /// Removes an element.
    ///
    /// # Errors
    /// [`ManagerError::OutOfRange`] beyond the end.
    pub fn remove(&self, index: usize) -> Call<T> {
        self.remote.request(method::REMOVE, Ok(Request::new().number(index as u64)), value)
    }

    /// Removes the first element that is equal to this one; the result is whether there was one.
    pub fn remove_value(&self, item: &T) -> Call<bool> {
        self.one(method::REMOVE_VALUE, item, flag)
    }

    /// How many elements there are.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> Call<usize> {
        self.plain(method::LEN, count)
    }

    /// A copy of a part; what lies beyond the end is left out.
    pub fn slice(&self, range: impl std::ops::RangeBounds<usize>) -> Call<Vec<T>> {
        use std::ops::Bound::{Excluded, Included, Unbounded};
        let from = match range.start_bound() {
            Included(at) => *at as u64,
            Excluded(at) => (*at as u64).saturating_add(1),
            Unbounded => 0,
        };
        let to = match range.end_bound() {
            Included(at) => (*at as u64).saturating_add(1),
            Excluded(at) => *at as u64,
            Unbounded => u64::MAX,
        };
        self.remote.request(method::SLICE, Ok(Request::new().number(from).number(to)), sequence)
    }

    /// A copy of all elements, as they are at one moment.
    pub fn items(&self) -> Call<Vec<T>> {
        self.slice(..)
    }

    /// Turns the order around.
    pub fn reverse(&self) -> Call<()> {
        self.plain(method::REVERSE, unit)
    }

    /// Whether an element is equal to this one.
    pub fn contains(&self, item: &T) -> Call<bool> {
        self.one(method::INDEX, item, flag)
    }

    /// The index of the first element that is equal to this one.
    pub fn index(&self, item: &T) -> Call<Option<usize>> {
        self.one(method::INDEX, item, |result, source| {
            let mut fields = Fields(result);
            if fields.flag().map_err(cut)? { count(fields.rest(), source).map(Some) } else { Ok(None) }
        })
    }

    /// How many elements are equal to this one.
    pub fn count(&self, item: &T) -> Call<usize> {
        self.one(method::COUNT, item, count)
    }

    /// Removes everything.
    pub fn clear(&self) -> Call<()> {
        self.plain(method::CLEAR, unit)
    }

    /// Sets an element if it is what is expected; otherwise the result is an `Err` of what is there.
    ///
    /// # Errors
    /// [`ManagerError::OutOfRange`] beyond the end.
    pub fn compare_and_swap(&self, index: usize, expected: &T, new: &T) -> Call<Result<(), T>> {
        let request = Request::new().number(index as u64).value(expected).and_then(|request| request.value(new));
        self.remote.request(method::COMPARE_AND_SWAP, request, swapped)
    }

    /// Changes an element in the server, in one step; see [`DictProxy::update`].
    ///
    /// # Errors
    /// [`ManagerError::OutOfRange`] beyond the end.
    pub fn update<U: Update<Target = T>>(&self, index: usize, update: U) -> Call<U::Output> {
        let request = update_request(&update).map(|request| request.number(index as u64));
        self.remote.request(method::UPDATE, request, value)
    }

    /// Changes the whole list in the server, in one step: the function gets all elements, in a `Vec` or a `VecDeque`.
    /// See [`DictProxy::update_all`].
    pub fn update_all<U>(&self, update: U) -> Call<U::Output>
    where
        U: Update<Target: WholeList<T>>,
    {
        self.remote.request(method::UPDATE_ALL, update_request(&update), value)
    }

    /// Sorts the elements, in one step; equal ones stay in their order. Floating-point numbers have the order of
    /// [`f64::total_cmp`].
    ///
    /// Types of one's own, and other orders, are sorted by an [update of the whole](Self::update_all).
    pub fn sort(&self) -> Call<()>
    where
        T: Sortable,
    {
        self.remote.request(method::SORT, Ok(sort_request(false)), unit)
    }

    /// As [`sort`](Self::sort), from the largest to the smallest.
    pub fn sort_descending(&self) -> Call<()>
    where
        T: Sortable,
    {
        self.remote.request(method::SORT, Ok(sort_request(true)), unit)
    }
}

fn sort_request(descending: bool) -> Request {
    let mut request = Request::new();
    request.bytes().push(u8::from(descending));
    request
}

/// A set in a manager; values are equal when their encodings are.
#[must_use = "a proxy does nothing by itself"]
pub struct SetProxy<T> {
    remote: Remote,
    _types: PhantomData<fn() -> T>,
}

proxy!(SetProxy, format!("set<{}>", type_name::<T>()), T);

impl<T: Data> SetProxy<T> {
    fn one(&self, method: u32, item: &T) -> Call<bool> {
        self.remote.request(method, Request::new().last(item), flag)
    }

    /// Adds a value; the result is whether it was not there before.
    pub fn insert(&self, item: &T) -> Call<bool> {
        self.one(method::INSERT, item)
    }

    /// Adds several values in one step; the result is how many were not there before.
    pub fn extend<'a>(&self, items: impl IntoIterator<Item = &'a T>) -> Call<usize> {
        self.remote.request(method::EXTEND, put_all(items), count)
    }

    /// Removes a value; the result is whether it was there.
    pub fn remove(&self, item: &T) -> Call<bool> {
        self.one(method::REMOVE, item)
    }

    /// Whether the value is there.
    pub fn contains(&self, item: &T) -> Call<bool> {
        self.one(method::CONTAINS, item)
    }

    /// Removes the value that was added last.
    pub fn pop(&self) -> Call<Option<T>> {
        self.remote.request(method::POP, Ok(Request::new()), optional)
    }

    /// Changes the whole set in the server, in one step: the function gets all values, in a `HashSet`, a `BTreeSet` or
    /// a `Vec`. Of values that are equal one is kept. See [`DictProxy::update_all`].
    pub fn update_all<U>(&self, update: U) -> Call<U::Output>
    where
        U: Update<Target: WholeSet<T>>,
    {
        self.remote.request(method::UPDATE_ALL, update_request(&update), value)
    }

    /// How many values there are.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> Call<usize> {
        self.remote.request(method::LEN, Ok(Request::new()), count)
    }

    /// A copy of all values, in the order in which they were added.
    pub fn items(&self) -> Call<Vec<T>> {
        self.remote.request(method::ITEMS, Ok(Request::new()), sequence)
    }

    /// Removes everything.
    pub fn clear(&self) -> Call<()> {
        self.remote.request(method::CLEAR, Ok(Request::new()), unit)
    }
}

/// One value in a manager, as Python's `Manager().Value(..)`.
#[must_use = "a proxy does nothing by itself"]
pub struct ValueProxy<T> {
    remote: Remote,
    _types: PhantomData<fn() -> T>,
}

proxy!(ValueProxy, format!("value<{}>", type_name::<T>()), T);

impl<T: Data> ValueProxy<T> {
    /// A copy of the value.
    pub fn get(&self) -> Call<T> {
        self.remote.request(method::GET, Ok(Request::new()), value)
    }

    /// Sets the value.
    pub fn set(&self, to: &T) -> Call<()> {
        self.remote.request(method::SET, Request::new().last(to), unit)
    }

    /// Sets the value; the result is what it was.
    pub fn swap(&self, to: &T) -> Call<T> {
        self.remote.request(method::SWAP, Request::new().last(to), value)
    }

    /// Sets the value if it is what is expected; otherwise the result is an `Err` of what is there.
    pub fn compare_and_swap(&self, expected: &T, new: &T) -> Call<Result<(), T>> {
        let request = Request::new().value(expected).and_then(|request| request.value(new));
        self.remote.request(method::COMPARE_AND_SWAP, request, swapped)
    }

    /// Changes the value in the server, in one step; see [`DictProxy::update`].
    pub fn update<U: Update<Target = T>>(&self, update: U) -> Call<U::Output> {
        self.remote.request(method::UPDATE, update_request(&update), value)
    }
}

/// The encoded initial value of a [`ValueProxy`].
pub(in crate::manager) fn initial<T: Data>(value: &T) -> Decoded<Vec<u8>> {
    let mut bytes = Vec::new();
    wire::encode_into(value, &mut bytes)
        .map_err(|why| ManagerError::Codec(format!("the value could not be encoded: {why}").into()))?;
    Ok(bytes)
}
