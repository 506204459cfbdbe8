//! One seed from its start to its verdict: a safety phase with faults, then a phase without in which everything must
//! come level.

use std::sync::Arc;
use std::time::Duration;

use event_log::{Headers, NewRecord, TopicPartition};
use event_store::Topology;
use read_models::stock::StockReader;
use read_models::{ReadChoice, search};
use schemas::{Command, CommandEnvelope, Context, OutcomeKind, Sku, partition_of};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use uuid::Uuid;

use crate::incident::{FAULTS_END, Incident, Model, PROCESSES, incidents};
use crate::process::Process;
use crate::projection::Modelled;
use crate::read_model::ReadModelServer;
use crate::roles::System;
use crate::workload::{Given, commands};
use crate::world::{EPOCH, Fault, Place, Plan, Stats, Violation, World, mixed};

/// What one seed came to.
#[derive(Debug, Clone)]
pub struct Verdict {
    pub seed: u64,
    pub violation: Option<Violation>,
    pub stats: Stats,
    /// Equal for equal runs.
    pub hash: u64,
    pub trace: Vec<String>,
    pub fired: Vec<(Place, Fault)>,
}

/// How long the system may take to come level once the faults have ended: two reclaims of 15 s, a session and the
/// longest waits between attempts.
const LEVEL_WITHIN: Duration = Duration::from_secs(120);
const LOOK: Duration = Duration::from_millis(250);

/// Runs one seed on a runtime of its own, whose clock is simulated.
pub fn run(plan: &Plan) -> Verdict {
    fastrand::seed(plan.seed);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without I/O needs nothing of the machine");
    runtime.block_on(run_world(plan.clone()))
}

async fn run_world(plan: Plan) -> Verdict {
    let seed = plan.seed;
    let topology = Topology { partitions: 1 + (mixed(seed, "partitions", 0) % 3) as u32 };
    let world = Arc::new(World::new(plan, topology.partitions));
    let system = System::new(world.clone(), topology);
    tokio::select! {
        biased;
        () = world.violated.notified() => {}
        () = play(&system) => {}
    }
    Verdict {
        seed,
        violation: world.violation(),
        stats: world.stats(),
        hash: world.hash(),
        fired: world.fired(),
        trace: world.lines(),
    }
}

async fn play(system: &System) {
    let world = &system.world;
    let mut processes = JoinSet::new();
    for name in PROCESSES {
        processes.spawn(system.clone().supervise(name));
    }
    let mut clients = JoinSet::new();
    let mut by_topic = Vec::new();
    let given = match commands(world.plan().seed) {
        Ok(given) => given,
        Err(error) => return world.violate(Violation::new("LIVE", error.to_string())),
    };
    for (number, given) in given.into_iter().enumerate() {
        if world.plan().only_commands.as_ref().is_some_and(|only| !only.contains(&number)) {
            continue;
        }
        world.count(|stats| stats.commands += 1);
        if given.by_topic {
            by_topic.push(given.id);
        }
        for turn in 0..given.times {
            let place = Place { process: "client", operation: "give", count: number as u64 * 10 + u64::from(turn) };
            if given.by_topic {
                clients.spawn(send_by_topic(system.clone(), given.clone(), place));
            } else {
                clients.spawn(send(system.clone(), given.clone(), place));
            }
        }
    }
    let mut visitors = JoinSet::new();
    for (number, (at, incident)) in incidents(world.plan().seed).into_iter().enumerate() {
        if world.plan().only_incidents.as_ref().is_some_and(|only| !only.contains(&number)) {
            continue;
        }
        tokio::time::sleep_until(begin_of(world) + at).await;
        world.trace(|| incident.to_string());
        happen(system, incident, &mut visitors);
    }
    tokio::time::sleep_until(begin_of(world) + FAULTS_END).await;
    world.heal();

    let deadline = Instant::now() + LEVEL_WITHIN;
    loop {
        while clients.try_join_next().is_some() {}
        let Err(violation) = level(system, clients.len(), &by_topic) else { break };
        if Instant::now() > deadline {
            return world.violate(violation);
        }
        tokio::time::sleep(LOOK).await;
    }
    world.trace(|| "everything is level".to_owned());
    world.check(|checker| {
        system
            .stock
            .parts()
            .iter()
            .try_for_each(|(at, part)| checker.holds::<crate::projection::Stock>(*at, part, "all"))?;
        system
            .search
            .parts()
            .iter()
            .try_for_each(|(at, part)| checker.holds::<crate::projection::Search>(*at, part, "all"))
    });
}

/// When simulated time began: every time of a plan counts from there.
fn begin_of(world: &World) -> Instant {
    Instant::now() - Duration::from_millis((world.now() - EPOCH) as u64)
}

/// Whether everything that was given is decided, published and folded.
fn level(system: &System, clients: usize, by_topic: &[Uuid]) -> Result<(), Violation> {
    let behind = |invariant, what: String| Err(Violation::new(invariant, format!("not level: {what}")));
    if clients > 0 {
        return behind("LIVE", format!("{clients} senders have no answer"));
    }
    {
        let checker = system.world.checker();
        if let Some(id) = by_topic.iter().find(|id| !checker.is_decided(**id)) {
            return behind("W2", format!("command {id} of a command topic was not decided"));
        }
        let unpublished = checker.unpublished();
        if !unpublished.is_empty() {
            return behind("W4", format!("committed and not on their topics: {}", unpublished.join(", ")));
        }
    }
    if system.store.is_busy() {
        return behind("LIVE", "a transaction is open".to_owned());
    }
    model_level(system, &system.stock)?;
    model_level(system, &system.search)
}

fn model_level<M: Modelled>(system: &System, model: &ReadModelServer<M>) -> Result<(), Violation> {
    let parts = model.parts();
    for context in M::CONTEXTS {
        for end in system.log.ends(context.events_topic()) {
            let place = |at: read_models::PartitionRef| at.context == *context && at.partition == end.partition;
            let part = parts.iter().find(|(at, _)| place(*at)).map(|(_, part)| part);
            let at = part.map(|part| part.checkpoint.next_offset);
            if at != Some(end.next) || part.is_none_or(|part| !part.live) {
                let topic = context.events_topic();
                let told = format!("{} is at {at:?} of {} in {topic}/{}", M::NAME, end.next, end.partition);
                let health = system.health.report().components;
                return Err(Violation::new("LIVE", format!("not level: {told}; {health:?}")));
            }
        }
    }
    Ok(())
}

/// A sender that goes on until it has an answer.
async fn send(system: System, given: Given, place: Place) {
    let world = &system.world;
    let late = Duration::from_millis(if place.count.is_multiple_of(10) { 0 } else { world.dice(place, 1) % 3_000 });
    tokio::time::sleep_until(begin_of(world) + given.at + late).await;
    for attempt in 0_u64.. {
        let name = ["writer-1", "writer-2"][((world.dice(place, 2) + attempt) % 2) as usize];
        if let Some(handler) = system.handler(name) {
            let envelope = CommandEnvelope {
                id: given.id,
                correlation_id: None,
                causation_id: None,
                actor: None,
                traceparent: None,
                received_at: world.now(),
                command: given.command.clone(),
            };
            let digest = given.command.digest();
            if let Ok(outcome) = timeout(Duration::from_secs(8), handler.handle(envelope)).await
                && outcome.outcome != OutcomeKind::Failed
            {
                world.trace(|| format!("{} is {} by {name}", given.id, outcome.outcome.as_str()));
                world.check(|checker| checker.answered(digest, &outcome));
                if outcome.outcome == OutcomeKind::Accepted {
                    read_back(&system, &given.command, &outcome).await;
                }
                return;
            }
        }
        tokio::time::sleep(Duration::from_millis(100 + world.dice(place, 3 + attempt) % 400)).await;
    }
}

/// Q2: a read that names the position of a write sees it, or waits.
async fn read_back(system: &System, command: &Command, outcome: &schemas::Outcome) {
    let (Some(token), Some(stream), Some(version)) = (&outcome.position, &outcome.stream, outcome.version) else {
        return;
    };
    if command.context() != Context::Inventory {
        return;
    }
    let Ok(sku) = Sku::new(command.key()) else { return };
    let process = Process::new(system.world.clone(), "reader");
    let reader = system.stock.connect(process.clone());
    let choice = ReadChoice::default();
    let read = async {
        match reader.wait_for(token, &choice, Duration::from_secs(2)).await {
            Ok(true) => reader.stock(std::slice::from_ref(&sku), &choice).await.ok().map(|read| read.answers),
            _ => None,
        }
    };
    let answers = tokio::select! {
        biased;
        () = process.died() => None,
        answers = read => answers,
    };
    let Some(answers) = answers else { return };
    let Some(answer) = answers.first() else { return };
    // A store that lost its last second may have gone back behind the wait; its answer says so.
    let is_behind = token.iter().any(|wanted| {
        answer.position.get(wanted.context, wanted.partition).is_none_or(|position| position < wanted.position)
    });
    if is_behind || answer.parked {
        return;
    }
    let warehouse = stream.rsplit_once('@').map(|(_, warehouse)| warehouse);
    let row = answer.warehouses.iter().find(|(name, _)| Some(name.as_str()) == warehouse);
    let seen = row.map_or(0, |(_, row)| row.version);
    if seen < version {
        let what = format!("{stream}: at {} version {seen} is read, {version} was promised", answer.position);
        system.world.violate(Violation::new("Q2", what));
    }
}

async fn send_by_topic(system: System, given: Given, place: Place) {
    let world = &system.world;
    let late = Duration::from_millis(if place.count.is_multiple_of(10) { 0 } else { world.dice(place, 1) % 3_000 });
    tokio::time::sleep_until(begin_of(world) + given.at + late).await;
    let key = given.command.key().as_bytes();
    let partition = partition_of(key, system.topology.partitions);
    let json = serde_json::to_value(&given.command).unwrap_or_default();
    let headers = [
        ("ce_specversion", "1.0".to_owned()),
        ("ce_id", given.id.to_string()),
        ("ce_type", given.command.command_type().to_owned()),
        ("ce_source", "/simulated".to_owned()),
        ("content-type", "application/json".to_owned()),
    ];
    let record = NewRecord {
        at: TopicPartition::new(given.command.context().commands_topic(), partition),
        key: key.to_vec(),
        headers: headers.into_iter().collect(),
        value: json["data"].to_string().into_bytes(),
        timestamp: world.now(),
    };
    while system.log.append(record.clone()).is_none() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    world.trace(|| format!("{} is on its command topic", given.id));
}

fn happen(system: &System, incident: Incident, visitors: &mut JoinSet<()>) {
    let world = &system.world;
    match incident {
        Incident::Crash(name) => {
            if let Some(process) = system.living(name) {
                process.crash("killed");
            }
        }
        Incident::Freeze(name, time) => {
            if let Some(process) = system.living(name).filter(|process| !process.is_dead()) {
                process.freeze(time);
            }
        }
        Incident::Rebalance => system.log.rebalance(),
        Incident::RollBack(model, lost, mask) => {
            world.count(|stats| stats.rollbacks += 1);
            let is_hit = |at: read_models::PartitionRef| mask >> ((at.partition * 3 + at.context as u32) % 32) & 1 == 1;
            match model {
                Model::Stock => system.stock.roll_back(lost, is_hit),
                Model::Search => system.search.roll_back(lost, is_hit),
            }
            forget_owners(world, model);
        }
        Incident::Wipe(model) => {
            world.count(|stats| stats.wipes += 1);
            match model {
                Model::Stock => system.stock.wipe(),
                Model::Search => system.search.wipe(),
            }
            forget_owners(world, model);
        }
        Incident::StrangeEvent(dice) => {
            let context = search::CONTEXTS[dice as usize % search::CONTEXTS.len()];
            if let Some(record) = system.log.append(stranger(context.events_topic(), dice, system.topology)) {
                world.checker().foreign(&record);
            }
        }
        Incident::StrangeCommand(dice) => {
            let context = Context::ALL[dice as usize % Context::ALL.len()];
            system.log.append(stranger(context.commands_topic(), dice, system.topology));
        }
        Incident::OtherVersion => {
            if system.stock.parts().iter().any(|(_, part)| part.is_claimed) {
                visitors.spawn(system.clone().run_other_version());
            }
        }
    }
}

fn forget_owners(world: &World, model: Model) {
    world.checker().forgot_owners(match model {
        Model::Stock => "stock",
        Model::Search => "search",
    });
}

fn stranger(topic: &str, dice: u32, topology: Topology) -> NewRecord {
    NewRecord {
        at: TopicPartition::new(topic, dice % topology.partitions),
        key: b"stranger".to_vec(),
        headers: Headers::default(),
        value: dice.to_be_bytes().to_vec(),
        timestamp: EPOCH,
    }
}
