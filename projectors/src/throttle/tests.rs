use super::*;

const BUSY: Pressure =
    Pressure { live_lag: 10, events_come: true, arrivals: 300, reads: 100, read_p99_ms: 5.0, is_unseen: false };

fn at(rate: Option<f64>) -> ThrottleStatus {
    ThrottleStatus { rate, yields_to: None }
}

fn stepped(last: Option<f64>, pressure: Pressure, used: f64) -> ThrottleStatus {
    let settings = ThrottleSettings { rate_beside_live: CEILING, ..ThrottleSettings::default() };
    step(&at(last), &settings, pressure, used)
}

#[test]
fn it_yields_to_events_that_wait_and_to_slow_reads_down_to_a_floor() {
    let lagging = Pressure { live_lag: 2_001, ..BUSY };
    let status = stepped(Some(40_000.0), lagging, 40_000.0);
    assert_eq!(status.rate, Some(20_000.0));
    assert_eq!(status.yields_to.unwrap().to_string(), "2001 events wait for the live side, the bound is 2000");
    let slow = Pressure { read_p99_ms: 50.1, ..BUSY };
    let status = stepped(Some(600.0), slow, 600.0);
    assert_eq!((status.rate, status.yields_to.is_some()), (Some(FLOOR), true));
    assert_eq!(stepped(Some(FLOOR), slow, 0.0).rate, Some(FLOOR), "never less");
    assert_eq!(stepped(Some(20_000.0), Pressure { live_lag: 2_000, ..BUSY }, 20_000.0).yields_to, None, "at the bound");
}

#[test]
fn a_shadow_keeps_up_with_what_comes_though_reads_are_slow_but_not_when_the_live_side_is_behind() {
    let settled = |pressure| (0..20).fold(40_000.0, |rate, _| stepped(Some(rate), pressure, rate).rate.unwrap());
    let slow = Pressure { read_p99_ms: 90.0, arrivals: 2_000, ..BUSY };
    assert_eq!(settled(slow), 3_000.0);
    assert_eq!(settled(Pressure { live_lag: 5_000, ..slow }), FLOOR);
    let settings = ThrottleSettings { rate_beside_live: 1_000.0, ..ThrottleSettings::default() };
    assert_eq!(step(&at(Some(1_000.0)), &settings, slow, 1_000.0).rate, Some(1_000.0), "the operator's bound holds");
}

#[test]
fn the_first_yield_has_an_effect_however_high_the_bound_was() {
    let lagging = Pressure { live_lag: 5_000, ..BUSY };
    assert_eq!(stepped(None, lagging, 90_000.0).rate, Some(45_000.0));
    assert_eq!(stepped(Some(900_000.0), lagging, 90_000.0).rate, Some(45_000.0));
}

#[test]
fn it_grows_while_nothing_suffers_and_what_it_has_is_used() {
    let growth = CEILING / STEPS_TO_THE_MOST;
    assert_eq!(stepped(Some(80_000.0), BUSY, 80_000.0).rate, Some(80_000.0 + growth));
    assert_eq!(stepped(Some(20_000.0), BUSY, 3.0).rate, Some(20_000.0));
    assert_eq!(stepped(None, BUSY, 300_000.0).rate, Some(300_000.0 + growth));
    assert_eq!(stepped(Some(FLOOR), BUSY, FLOOR).rate, Some(2.0 * FLOOR));
}

#[test]
fn a_build_begins_gently_beside_a_live_side() {
    let settings = ThrottleSettings { rate_beside_live: 10_000.0, ..ThrottleSettings::default() };
    let mut rates = vec![Throttle::new(settings).status().rate.unwrap()];
    for last in 0..16 {
        rates.push(step(&at(Some(rates[last])), &settings, BUSY, rates[last]).rate.unwrap());
    }
    assert_eq!(rates[..4], [2_500.0, 3_000.0, 3_500.0, 4_000.0]);
    assert_eq!((rates[14], rates[15], rates[16]), (9_500.0, 10_000.0, 10_000.0), "within four seconds");
    // After one that had nobody to disturb, too.
    assert_eq!(step(&at(None), &settings, BUSY, 0.0).rate, Some(2_500.0));
}

#[test]
fn beside_live_traffic_there_is_a_most_however_little_suffers() {
    let settings = ThrottleSettings { rate_beside_live: 12_000.0, ..ThrottleSettings::default() };
    let next = |last, used| step(&at(last), &settings, BUSY, used).rate;
    assert_eq!(next(Some(11_500.0), 11_500.0), Some(12_000.0));
    assert_eq!(next(Some(12_000.0), 12_000.0), Some(12_000.0));
    assert_eq!(next(None, 150_000.0), Some(12_000.0), "from the first look at somebody on");
    let lagging = Pressure { live_lag: 5_000, ..BUSY };
    assert_eq!(step(&at(None), &settings, lagging, 150_000.0).rate, Some(12_000.0), "all the more when it suffers");
    assert_eq!(Throttle::new(ThrottleSettings { rate_beside_live: 800.0, ..settings }).status().rate, Some(200.0));
    let idle = Pressure { live_lag: 3, ..Pressure::default() };
    assert_eq!(step(&at(Some(12_000.0)), &settings, idle, 12_000.0), at(None));
}

#[test]
fn with_nobody_to_disturb_there_is_no_bound() {
    let idle = Pressure { live_lag: 3, ..Pressure::default() };
    assert_eq!(stepped(Some(FLOOR), idle, FLOOR), at(None));
    // A report of slow reads from when there were some holds nobody back.
    assert_eq!(stepped(Some(FLOOR), Pressure { read_p99_ms: 900.0, ..idle }, FLOOR), at(None));
    assert!(stepped(None, Pressure { events_come: true, ..idle }, 0.0).rate.is_some());
    assert!(stepped(None, Pressure { reads: 1, ..idle }, 0.0).rate.is_some());
}

#[test]
fn what_is_let_through_keeps_to_the_rate_in_small_pieces() {
    let throttle = Throttle::new(ThrottleSettings::default());
    let mut shared = throttle.shared.lock().unwrap();
    let rate = 10_000.0;
    shared.status.rate = Some(rate);
    let begun = Instant::now();
    let (mut now, mut let_through) = (begun, 0);
    while now < begun + Duration::from_secs(10) {
        let (at, events) = shared.grant(10_000, now);
        assert!((LEAST..=(rate / 20.0) as usize).contains(&events), "{events}");
        now = at;
        let_through += events;
    }
    let wanted = 10.0 * rate;
    assert!((0.95 * wanted..1.05 * wanted).contains(&(let_through as f64)), "{let_through}");
    // Time that was not used is not made up for.
    let later = now + Duration::from_secs(60);
    assert_eq!(shared.grant(10_000, later).0, later);
    assert!(shared.grant(10_000, later).0 > later);
    shared.status.rate = None;
    assert_eq!(shared.grant(10_000, later), (later, 10_000));
}

#[tokio::test(start_paused = true)]
async fn beside_a_live_side_pieces_go_one_after_the_other() {
    let throttle = Throttle { places: Arc::new(Semaphore::new(1)), ..Throttle::new(ThrottleSettings::default()) };
    let first = throttle.permit(10_000).await;
    assert!(first.events <= LARGEST);
    let second = tokio::time::timeout(PLACE_WITHIN / 2, throttle.permit(10)).await;
    assert!(second.is_err(), "both at once");
    drop(first);
    let stuck = tokio::time::timeout(PLACE_WITHIN / 2, throttle.permit(10)).await.unwrap();
    let other = tokio::time::timeout(2 * PLACE_WITHIN, throttle.permit(10)).await;
    assert_eq!(other.unwrap().events, 10, "one that waits for its store holds nobody else up");
    drop(stuck);
    throttle.shared.lock().unwrap().status.rate = None;
    let all = throttle.permit(10_000).await;
    assert_eq!(all.events, 10_000, "with nobody to disturb");
}

#[test]
fn the_worst_of_all_read_models_counts() {
    let other =
        Pressure { live_lag: 9_000, events_come: false, arrivals: 2_000, reads: 1, read_p99_ms: 1.0, is_unseen: true };
    let worst = BUSY.worse(other);
    let expected =
        Pressure { live_lag: 9_000, events_come: true, arrivals: 2_300, reads: 101, read_p99_ms: 5.0, is_unseen: true };
    assert_eq!(worst, expected);
}

#[test]
fn what_cannot_be_seen_is_no_leave_to_run_free() {
    let unseen = Pressure { is_unseen: true, ..Pressure::default() };
    for last in [None, Some(FLOOR), Some(40_000.0)] {
        let status = stepped(last, unseen, 80_000.0);
        assert_eq!((status.rate, status.yields_to), (Some(FLOOR), Some(YieldsTo::Unseen)));
    }
}
