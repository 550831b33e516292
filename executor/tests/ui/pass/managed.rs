//! A managed type, its options, and updates, in a crate that re-exports polypool.
#![forbid(unsafe_code)]
#![deny(warnings)]

mod toolbox {
    pub use ::polypool as pools;
}

use toolbox::pools::manager::{Managed as _, Manager, Update as _};

/// Not data, and without `Clone`.
pub struct Tank {
    level: std::sync::Mutex<f64>,
}

#[toolbox::pools::managed(crate = toolbox::pools, name = "tank, second edition", proxy = Gauge)]
impl Tank {
    /// With nothing in it.
    pub fn empty() -> Tank {
        Tank { level: std::sync::Mutex::new(0.0) }
    }

    pub fn filled(level: f64) -> Result<Self, String> {
        if level < 0.0 { Err("it leaks".to_owned()) } else { Ok(Tank { level: level.into() }) }
    }

    pub fn pour(&mut self, litres: f64, _note: Option<String>) {
        *self.level.get_mut().unwrap() += litres;
    }

    pub fn level(&self) -> f64 {
        self.with(|level| level)
    }

    pub fn r#type(&self) -> String {
        "tank".to_owned()
    }

    #[managed(skip)]
    pub fn with<R>(&self, look: impl FnOnce(f64) -> R) -> R {
        look(*self.level.lock().unwrap())
    }

    pub const CAPACITY: f64 = 9.0;

    pub fn capacity() -> f64 {
        Self::CAPACITY
    }
}

#[toolbox::pools::update(crate = toolbox::pools, name = "push")]
fn push(list: &mut Vec<u8>, byte: u8, more: Vec<u8>) -> usize {
    list.push(byte);
    list.extend(more);
    list.len()
}

#[polypool::update]
fn reset(value: &mut u64) {
    *value = 0;
}

fn main() {
    assert_eq!(Tank::NAME, "tank, second edition");
    assert_eq!(push::NAME, "push");
    assert_eq!(push::SIGNATURE, "fn(byte: u8, more: Vec<u8>) -> usize of &mut Vec<u8>");
    assert_eq!(Tank::capacity(), 9.0);
    let manager = Manager::in_thread().unwrap();
    let gauge: Gauge = Gauge::filled(&manager, 1.0).wait().unwrap();
    gauge.pour(2.0, None).wait().unwrap();
    assert_eq!(gauge.level().wait().unwrap(), 3.0);
    assert_eq!(gauge.r#type().wait().unwrap(), "tank");
    assert_eq!(Gauge::empty(&manager).wait().unwrap().level().wait().unwrap(), 0.0);
    assert!(Gauge::filled(&manager, -1.0).wait().is_err());
    assert_eq!(manager.host(Tank::empty()).unwrap().level().wait().unwrap(), 0.0);
    let list = manager.value(&vec![1u8]).wait().unwrap();
    assert_eq!(list.update(push { byte: 2, more: vec![3] }).wait().unwrap(), 3);
    let number = manager.value(&7u64).wait().unwrap();
    number.update(reset {}).wait().unwrap();
    assert_eq!(number.get().wait().unwrap(), 0);
}
