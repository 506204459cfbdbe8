use super::*;

const EXAMPLE: &str = include_str!("../../../deploy/stages.toml");

fn refusal(text: &str) -> String {
    Plan::parse("stages.toml", text).unwrap_err().to_string()
}

#[test]
fn the_example_parses_and_gives_more_with_each_stage() {
    let plan = Plan::parse("deploy/stages.toml", EXAMPLE).unwrap();
    let shares: Vec<String> = plan.stages.iter().map(|stage| stage.share.to_string()).collect();
    assert_eq!(shares, ["mirrored reads only", "10 %", "requests for eu", "all"]);
    assert_eq!(plan.stages[0].exit.min_mirrored, 1_000);
    assert_eq!(plan.triggers.max_differing, Some(0));
    assert_eq!(plan.rollback.window, Duration::from_secs(86_400));
}

#[test]
fn without_a_file_all_is_given_at_once() {
    assert_eq!(Plan::parse("stages.toml", "").unwrap(), Plan::default());
    assert_eq!(Plan::default().stages.len(), 1);
    assert_eq!(Plan::default().approvals.needed, 1);
}

#[test]
fn a_plan_reads_back_from_what_its_replay_keeps() {
    let plan = Plan::parse("deploy/stages.toml", EXAMPLE).unwrap();
    let kept = serde_json::to_value(&plan).unwrap();
    assert_eq!(serde_json::from_value::<Plan>(kept).unwrap(), plan);
}

#[test]
fn an_unknown_key_is_refused_with_what_would_do() {
    let refused = refusal("[triggers]\nmax_lag = 5");
    assert!(refused.contains("stages.toml") && refused.contains("max_lag") && refused.contains("max_lag_events"));
    let refused = refusal("[[stage]]\nname = \"a\"\nshare = \"some\"");
    assert!(refused.contains("some") && refused.contains("percent"), "{refused}");
    assert!(refusal("parity_max_age = \"soon\"").contains("such as 10s or 24h"));
}

#[test]
fn shares_may_not_shrink_and_end_with_all() {
    let stage = |name: &str, share: &str| format!("[[stage]]\nname = \"{name}\"\nshare = {share}\n");
    let all = stage("all", "\"all\"");
    let refused = refusal(&(stage("a", "{ percent = 10 }") + &stage("b", "{ percent = 5 }") + &all));
    assert!(refused.contains("stage \"b\": share: 5 % is less than the 10 % of stage \"a\""), "{refused}");
    let skipped = stage("a", "{ percent = 10 }") + &stage("b", "{ regions = [\"eu\"] }");
    assert!(refusal(&(skipped.clone() + &stage("c", "{ percent = 9 }") + &all)).contains("shares may only grow"));
    let regions = stage("a", "{ regions = [\"eu\", \"us\"] }") + &stage("b", "{ regions = [\"eu\"] }") + &all;
    assert!(refusal(&regions).contains("shares may only grow"));
    let mirror = "mirror_percent = 5\n";
    assert!(refusal(&(stage("a", "{ percent = 1 }") + &stage("b", "\"none\"") + mirror + &all)).contains("only grow"));
    assert!(refusal(&stage("a", "{ percent = 10 }")).contains("the last stage needs \"all\""));
    assert!(refusal(&(all.clone() + &stage("b", "\"all\""))).contains("only the last stage"));
    assert!(refusal("stage = []").contains("at least one"));
    assert!(Plan::parse("stages.toml", &(skipped + &stage("c", "{ percent = 20 }") + &all)).is_ok());
}

#[test]
fn what_could_never_be_measured_is_refused() {
    let all = "[[stage]]\nname = \"all\"\nshare = \"all\"\n";
    let with = |body: &str| format!("[[stage]]\nname = \"a\"\n{body}\n{all}");
    for (body, key) in [
        ("share = \"none\"", "mirror_percent"),
        ("share = { percent = 5 }\nexit = { max_differing = 0 }", "mirror_percent"),
        ("share = { percent = 5 }\nmirror_percent = 101", "mirror_percent"),
        ("share = { percent = 0 }", "share.percent"),
        ("share = { percent = 100 }", "share.percent"),
        ("share = { regions = [] }", "share.regions"),
        ("share = \"none\"\nmirror_percent = 9\nexit = { max_error_rate = 5.0 }", "exit.max_error_rate"),
        ("share = \"none\"\nmirror_percent = 9\nexit = { max_p99_ratio = 0.0 }", "exit.max_p99_ratio"),
    ] {
        let refused = refusal(&with(body));
        assert!(refused.contains("stage \"a\"") && refused.contains(key), "{body}: {refused}");
    }
    assert!(refusal(&format!("{all}mirror_percent = 5")).contains("nothing is left to mirror"));
    assert!(refusal(&format!("{all}min_time = \"5s\"")).contains("is not left"));
    assert!(refusal("[triggers]\nholds_for = \"50s\"").contains("triggers.holds_for"));
    assert!(refusal("[triggers]\nmax_error_rate = 1.5").contains("triggers.max_error_rate"));
    assert!(refusal("[approvals]\nneeded = 0").contains("approvals.needed"));
    let twice = "[[stage]]\nname = \"all\"\nshare = { percent = 5 }\n".to_owned() + all;
    assert!(refusal(&twice).contains("another stage has it"));
}

#[test]
fn every_bound_has_a_floor_and_a_ceiling() {
    for (text, key) in [
        ("parity_max_age = \"0s\"", "parity_max_age"),
        ("parity_max_age = \"25h\"", "parity_max_age"),
        ("[rollback]\nwindow = \"59s\"", "rollback.window"),
        ("[rollback]\nwindow = \"91days\"", "rollback.window"),
        ("[triggers]\nmax_lag_events = 0", "triggers.max_lag_events"),
        ("[triggers]\nmax_lag_events = 10000001", "triggers.max_lag_events"),
        ("[triggers]\nmax_p99_ms = 0.0", "triggers.max_p99_ms"),
        ("[triggers]\nmax_p99_ms = nan", "triggers.max_p99_ms"),
        ("[triggers]\nmax_p99_ms = 60001.0", "triggers.max_p99_ms"),
        ("[approvals]\nneeded = 21", "approvals.needed"),
    ] {
        assert!(refusal(text).starts_with(&format!("stages.toml: {key}: use ")), "{text}: {}", refusal(text));
    }
    let all = "[[stage]]\nname = \"all\"\nshare = \"all\"\n";
    for (body, key) in [
        ("entry = { max_lag_events = 100001 }", "entry.max_lag_events"),
        ("exit = { min_mirrored = 10000001 }", "exit.min_mirrored"),
        ("exit = { max_p99_ratio = 101.0 }", "exit.max_p99_ratio"),
        ("min_time = \"31days\"", "min_time"),
    ] {
        let text = format!("[[stage]]\nname = \"a\"\nshare = \"none\"\nmirror_percent = 9\n{body}\n{all}");
        assert!(refusal(&text).contains(&format!("stage \"a\": {key}: use ")), "{body}: {}", refusal(&text));
    }
    let at_the_edge = "parity_max_age = \"24h\"\nqueries = \"optional\"\n[rollback]\nwindow = \"1m\"";
    let plan = Plan::parse("stages.toml", at_the_edge).unwrap();
    assert_eq!(plan.queries, Some(QueryRule::Optional));
}
