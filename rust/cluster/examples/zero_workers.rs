//! What the scheduler costs: workers that answer at once, however many, over loopback (the "zero worker" of the RSDS paper,
//! Böhm and Beránek 2020, arXiv:2010.11105).
//!
//! `zero_workers WORKERS TASKS`: one node each, one client, tasks without dependencies, all in this process but the scheduler,
//! which runs in one of its own. Prints one line of JSON: tasks per second, CPU seconds of the scheduler per task, round trips, memory.

use std::time::{Duration, Instant};

use bytes::Bytes;
use rustdask_cluster::scheduler::{self, Options};
use rustdask_cluster::transport::{connect, Address, Connection, Listener, Outbox, Port, Reader, Security};
use rustdask_core::cluster::{FromClient, FromNode, NodeSpec, Role, ToClient, ToNode, Versions};
use rustdask_core::message::{Body, Report, Timings};
use rustdask_core::nested::{FromTask, Numbers, Submitted};
use rustdask_core::{BlobId, CallId, NodeId, Priority, TaskId, TaskSpec};

const CALL: CallId = CallId(0);
const PATIENCE: Duration = Duration::from_secs(30);
const MAX_BACKLOG: usize = 4 << 30;
const PIECE: u64 = 10_000;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if arguments.len() == 2 && arguments[1] == "scheduler" {
        return serve();
    }
    let number = |at: usize| arguments.get(at).and_then(|text| text.parse().ok());
    let (Some(workers), Some(tasks)) = (number(1), number(2)) else {
        eprintln!("usage: zero_workers WORKERS TASKS");
        std::process::exit(2);
    };
    let mut scheduler = std::process::Command::new(&arguments[0])
        .arg("scheduler")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("this program can be started again");
    let mut line = String::new();
    let stdout = scheduler.stdout.take().expect("it is piped");
    std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line).expect("it says where it is");
    let address = line.trim().parse().expect("it is an address");
    runtime().block_on(measure(address, scheduler.id(), workers as u32, tasks));
    drop(scheduler.stdin.take());
    scheduler.wait().expect("it ends with its input");
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("the system has threads")
}

/// Until the input closes.
fn serve() {
    runtime().block_on(async {
        let listener =
            Listener::bind("127.0.0.1", Port::Exactly(0), Security::default()).await.expect("a port is free");
        println!("{}", listener.address());
        let options = Options { versions: Versions::default(), node_timeout: Duration::from_secs(3600) };
        let closed = tokio::task::spawn_blocking(|| std::io::copy(&mut std::io::stdin(), &mut std::io::sink()));
        scheduler::serve(listener, options, async { drop(closed.await) }).await;
    });
}

async fn measure(address: Address, scheduler: u32, workers: u32, tasks: u64) {
    for _ in 0..workers {
        let (connection, number) = open(&address, Role::Node).await;
        tokio::spawn(answer(connection, number));
    }
    let (connection, number) = open(&address, Role::Client).await;
    let (reader, outbox) = connection.split(MAX_BACKLOG);
    let mut client = Client { base: Numbers::of_client(number).take(0), reader, outbox, next: 0 };
    client.say(FromClient::Open { call: CALL, cap: u32::MAX, crash_retries: 0 }, b"");
    let function = BlobId(client.base);
    let word = FromTask::Function { function, same_as: None, body: Body::Inline, buffers: vec![] };
    client.say(FromClient::Task { call: CALL, word }, b"f");
    client.run(1000).await;
    let mut trips = Vec::new();
    for _ in 0..1000 {
        let begun = Instant::now();
        client.run(1).await;
        trips.push(begun.elapsed());
    }
    trips.sort_unstable();
    let (cpu, rss) = (cpu_seconds(scheduler), rss_mib(scheduler));
    let begun = Instant::now();
    client.run(tasks).await;
    let took = begun.elapsed().as_secs_f64();
    let (cpu, peak) = (cpu_seconds(scheduler) - cpu, rss_mib(scheduler));
    println!(
        "{{\"workers\": {workers}, \"tasks\": {tasks}, \"tasks_per_s\": {:.0}, \"scheduler_us_per_task\": {:.2}, \
         \"round_trip_p50_us\": {}, \"round_trip_p99_us\": {}, \"rss_mib_before\": {rss}, \"rss_mib_after\": {peak}}}",
        tasks as f64 / took,
        cpu * 1e6 / tasks as f64,
        trips[trips.len() / 2].as_micros(),
        trips[trips.len() * 99 / 100].as_micros(),
    );
}

async fn open(address: &Address, role: Role) -> (Connection, u32) {
    let mut connection = connect(address, &Security::default(), PATIENCE).await.expect("the scheduler is there");
    let welcome = connection.greet(role, Versions::default()).await.expect("it lets everybody in");
    (connection, welcome.number)
}

/// A worker that has done everything before it is asked.
async fn answer(connection: Connection, number: u32) {
    let (mut reader, outbox) = connection.split(MAX_BACKLOG);
    outbox.send(&FromNode::Joined(NodeSpec { workers: 1, ..NodeSpec::default() }), Bytes::new());
    outbox.send(&FromNode::WorkerJoined { worker: NodeId(number).worker(0), pid: 0 }, Bytes::new());
    while let Ok(Some(frame)) = reader.next::<ToNode>().await {
        if let ToNode::Run { worker, run } = frame.message {
            let (task, attempt) = (run.task, run.attempt);
            let (report, timings) = (Report::Results, Timings::default());
            let finished = FromNode::Finished { worker, task, attempt, report, bytes: 4, timings };
            outbox.send(&finished, Bytes::from_static(b"None"));
        }
    }
}

struct Client {
    base: u64,
    reader: Reader,
    outbox: Outbox,
    next: u64,
}

impl Client {
    fn say(&self, message: FromClient, body: &'static [u8]) {
        self.outbox.send(&message, Bytes::from_static(body));
    }

    /// Submit so many tasks, in pieces, and wait for all of them.
    async fn run(&mut self, tasks: u64) {
        let first = self.next;
        self.next += tasks;
        let mut submitted = 0;
        let mut ended = 0;
        while ended < tasks {
            if submitted < tasks && self.outbox.backlog_bytes() < 64 << 20 {
                let piece = PIECE.min(tasks - submitted);
                self.submit(first + submitted, piece);
                submitted += piece;
            }
            let frame = self.reader.next::<ToClient>().await.expect("the connection holds").expect("it is open");
            ended += u64::from(matches!(frame.message, ToClient::Ended { .. }));
        }
        let all = (first..first + tasks).map(|nth| TaskId(self.base + nth));
        let word = FromTask::Release { tasks: all.collect() };
        self.say(FromClient::Task { call: CALL, word }, b"");
    }

    fn submit(&self, first: u64, tasks: u64) {
        for nth in first..first + tasks {
            let priority = Priority { order: nth as u32, ..Priority::default() };
            let spec = TaskSpec { task: TaskId(self.base + nth), priority, wanted: true, ..TaskSpec::default() };
            let task = Submitted::new(&spec, "f", BlobId(self.base), (Body::Inline, vec![]), vec![]);
            self.say(FromClient::Task { call: CALL, word: FromTask::Task(task) }, b"arguments");
        }
        self.say(FromClient::Task { call: CALL, word: FromTask::Submit { by: None } }, b"");
    }
}

fn cpu_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    let fields: Vec<&str> = stat.rsplit(')').next().expect("it has a name").split_whitespace().collect();
    let ticks = |at: usize| fields[at].parse::<f64>().expect("it is a number");
    (ticks(11) + ticks(12)) / 100.0
}

fn rss_mib(pid: u32) -> u64 {
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).expect("it runs");
    let pages: u64 = statm.split_whitespace().nth(1).and_then(|pages| pages.parse().ok()).expect("it is a number");
    (pages * 4096) >> 20
}
