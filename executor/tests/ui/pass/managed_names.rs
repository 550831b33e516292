//! What `#[managed]` writes has no names of its own that could be the user's: of types, traits, constants or arguments.
#![forbid(unsafe_code)]
#![deny(warnings)]

use polypool::manager::Manager;

const REGISTRATION: usize = 2;

/// A trait and its methods, with all the names that what is written might use for itself.
#[polypool::managed]
trait Object: Sized {
    fn new(manager: u8, constructor: u8, arguments: u8, made: u8) -> Self;

    fn all(&self, method: u8, arguments: u8, result: u8) -> Vec<u8>;

    fn swap(&mut self, object: T, label: [u8; REGISTRATION]) -> T;
}

/// A type that such a trait takes and returns.
#[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
struct T(Vec<u8>);

/// A type that has the names of others, and whose proxy has one of the names of their generic arguments.
struct Value(Vec<u8>);

#[polypool::managed]
impl Object for Value {
    fn new(manager: u8, constructor: u8, arguments: u8, made: u8) -> Self {
        Value(vec![manager, constructor, arguments, made])
    }

    fn all(&self, method: u8, arguments: u8, result: u8) -> Vec<u8> {
        let mut all = self.0.clone();
        all.extend([method, arguments, result]);
        all
    }

    fn swap(&mut self, object: T, label: [u8; REGISTRATION]) -> T {
        let old = std::mem::replace(&mut self.0, object.0);
        self.0.extend(label);
        T(old)
    }
}

mod same {
    use super::REGISTRATION;

    /// A trait with the name of a generic argument, which is its proxy's as well.
    #[polypool::managed(proxy = S)]
    pub(crate) trait D: Send {
        fn get(&self, result: [u8; REGISTRATION]) -> u8;
    }

    pub(crate) struct One;

    #[polypool::managed(proxy = S)]
    impl D for One {
        fn get(&self, result: [u8; REGISTRATION]) -> u8 {
            result[1]
        }
    }

    /// The trait is called as a generic argument is.
    #[polypool::managed]
    pub(crate) trait T {
        fn get(&self) -> u8;
    }

    impl T for One {
        fn get(&self) -> u8 {
            7
        }
    }
}

/// The same for a type of its own.
struct Own(u8);

#[polypool::managed]
impl Own {
    pub fn new(manager: u8, constructor: u8, arguments: u8) -> Self {
        Own(manager + constructor + arguments)
    }

    pub fn all(&self, method: u8, arguments: u8, result: u8, label: [u8; REGISTRATION]) -> Vec<u8> {
        vec![self.0, method, arguments, result, label[0], label[1]]
    }

    pub fn set(&mut self, result: u8) -> u8 {
        std::mem::replace(&mut self.0, result)
    }
}

fn main() {
    let manager = Manager::in_thread().unwrap();
    let object = ObjectProxy::new::<Value>(&manager, 1, 2, 3, 4).wait().unwrap();
    assert_eq!(object.all(5, 6, 7).wait().unwrap(), [1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(object.swap(T(vec![8]), [9, 10]).wait().unwrap(), T(vec![1, 2, 3, 4]));
    assert_eq!(object.all(0, 0, 0).wait().unwrap(), [8, 9, 10, 0, 0, 0]);

    assert_eq!(same::S::host(&manager, same::One).unwrap().get([1, 2]).wait().unwrap(), 2);
    assert_eq!(same::TProxy::host(&manager, same::One).unwrap().get().wait().unwrap(), 7);

    let own = OwnProxy::new(&manager, 1, 2, 3).wait().unwrap();
    assert_eq!(own.all(1, 2, 3, [4, 5]).wait().unwrap(), [6, 1, 2, 3, 4, 5]);
    assert_eq!((own.set(9).wait().unwrap(), own.set(0).wait().unwrap()), (6, 9));
}
