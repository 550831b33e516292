#[polypool::main(worker_threads = "four", flavor, flavor = "multi_thread")]
async fn main() {}
