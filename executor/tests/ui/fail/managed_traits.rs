#[polypool::managed]
trait Generic<T> {
    fn get(&self) -> T;
}

#[polypool::managed]
unsafe trait Dangerous {
    fn get(&self) -> u64;
}

#[polypool::managed(name = "x")]
trait Named {
    fn get(&self) -> u64;
}

#[polypool::managed]
trait Collection {
    type Item;
    fn len(&self) -> u64;
}

#[polypool::managed]
trait Maker {
    fn host(&self);
    fn create(number: u64) -> Self;
}

#[polypool::managed]
trait Nothing {
    fn new() -> Self;
}

#[polypool::managed]
trait Methods {
    fn rename(&mut self, name: &str);
    fn into_inner(self) -> u64;
    async fn later(&self) -> u64;
    fn same(&self, other: Self) -> bool;
    fn any<T>(&self, of: T) -> T;
}

struct Counter(u64);

#[polypool::managed]
impl Clone for Counter {
    fn clone(&self) -> Self {
        Counter(self.0)
    }
}

#[polypool::managed]
impl From<u64> for Counter {
    fn from(number: u64) -> Self {
        Counter(number)
    }
}

trait Count {
    fn count(&self) -> u64;
}

#[polypool::managed]
impl<T: Send> Count for Vec<T> {
    fn count(&self) -> u64 {
        self.len() as u64
    }
}

#[polypool::managed]
impl Count for Counter {
    #[managed(skip)]
    fn count(&self) -> u64 {
        self.0
    }
}

fn main() {}
