use super::*;

const MINIMAL: [(&str, &str); 3] =
    [("node_id", "1"), ("data_dir", "/tmp/q"), ("voters", "1@127.0.0.1:7101/127.0.0.1:7001")];

fn with(more: &[(&str, &str)]) -> Result<NodeConfig, ConfigError> {
    let settings: Vec<(String, String)> =
        MINIMAL.iter().chain(more).map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    load(None, std::iter::empty(), &settings)
}

fn refusal(more: &[(&str, &str)]) -> String {
    with(more).expect_err("should be refused").to_string()
}

#[test]
fn an_unknown_key_is_refused_with_the_nearest_name() {
    assert_eq!(
        refusal(&[("raft_lisen", "x")]),
        "command line: unknown key \"raft_lisen\"; did you mean \"raft_listen\"?"
    );
    assert_eq!(refusal(&[("entirely_different", "x")]), "command line: unknown key \"entirely_different\"");
}

#[test]
fn a_removed_key_is_refused_with_the_reason() {
    let text = "lease_reads = false\n";
    let refused = merge("node.toml", text, std::iter::empty(), &[]).expect_err("should be refused").to_string();
    assert_eq!(
        refused,
        "node.toml: unknown key \"lease_reads\"; it was removed: every linearizable read is confirmed by a majority"
    );
}

#[test]
fn a_non_loopback_address_needs_insecure_spelled_out() {
    assert!(refusal(&[("api_listen", "0.0.0.0:7001")]).contains("--insecure"));
    assert!(refusal(&[("voters", "1@10.0.0.1:7101/127.0.0.1:7001")]).contains("--insecure"));
    assert!(with(&[("api_listen", "0.0.0.0:7001"), ("insecure", "true")]).is_ok());
}

#[test]
fn the_later_source_wins() {
    let environment = [("QUORATE_RACK".to_owned(), "b".to_owned()), ("QUORATE_BOOTSTRAP".to_owned(), "x:1".to_owned())];
    let settings: Vec<(String, String)> = MINIMAL.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let config = load(None, environment.into_iter(), &settings).expect("valid");
    assert_eq!(config.rack, "b");
    assert_eq!(with(&[("rack", "c")]).expect("valid").rack, "c");
}

#[test]
fn only_a_loopback_cluster_formats_itself() {
    assert!(with(&[]).expect("valid").may_auto_format().expect("valid"));
    let production = with(&[("voters", "1@10.0.0.1:7101/10.0.0.1:7001"), ("insecure", "true")]).expect("valid");
    assert!(!production.may_auto_format().expect("valid"));
    let decided = with(&[("auto_format", "never")]).expect("valid");
    assert!(!decided.may_auto_format().expect("valid"));
}

#[test]
fn contradictions_are_named() {
    assert!(refusal(&[("node_id", "2")]).contains("must be listed exactly when"));
    assert!(refusal(&[("voters", "1@a/b")]).contains("is not ID@RAFT_HOST:PORT/API_HOST:PORT"));
    assert!(refusal(&[("broker_session_timeout_ms", "300")]).contains("two heartbeat intervals"));
}

#[test]
fn a_value_of_the_wrong_type_is_named_with_its_source() {
    let refused = |text: &str, variables: &[(&str, &str)]| {
        let environment = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        merge("node.toml", text, environment, &[]).expect_err("should be refused").to_string()
    };
    assert_eq!(
        refused("", &[("QUORATE_NODE_ID", "banana")]),
        "QUORATE_NODE_ID: node_id: invalid type: string \"banana\", expected i32"
    );
    assert!(refused("", &[("QUORATE_ROLES", "king")]).starts_with("QUORATE_ROLES: roles: unknown variant `king`"));
    assert!(refused("rack = 7\n", &[]).starts_with("node.toml: rack: invalid type: integer `7`"));
    assert!(refusal(&[("raft_heartbeat_ms", "soon")]).starts_with("command line: raft_heartbeat_ms: invalid type"));
    assert!(refused("node_id = -3\n", &[]).starts_with("node.toml: node_id: -3 is not positive"));
    assert!(refused("", &[]).starts_with("node_id: 0 is not positive"));
}

#[test]
fn variables_that_kubernetes_sets_are_no_keys() {
    let names = [
        "QUORATE_SERVICE_HOST",
        "QUORATE_SERVICE_PORT",
        "QUORATE_SERVICE_PORT_API",
        "QUORATE_PORT",
        "QUORATE_PORT_7001_TCP",
        "QUORATE_PORT_7001_TCP_ADDR",
        "QUORATE_PORT_7001_UDP_PROTO",
        "QUORATE_CLIENTS_PORT_7001_TCP_PORT",
    ];
    assert!(names.iter().all(|name| is_service_variable(name)));
    let others = ["QUORATE_PORT_SEVEN_TCP", "QUORATE_PORT_7001", "QUORATE_PORTS", "QUORATE_SERVICE", "OTHER_PORT"];
    assert!(!others.iter().any(|name| is_service_variable(name)));
    let settings: Vec<(String, String)> = MINIMAL.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let environment = |name: &str| [(name.to_owned(), "tcp://10.0.0.1:7001".to_owned())].into_iter();
    assert!(names.iter().all(|name| load(None, environment(name), &settings).is_ok()));
    let typo = load(None, environment("QUORATE_NODE_IDS"), &settings).expect_err("it is a typo").to_string();
    assert_eq!(typo, "QUORATE_NODE_IDS: unknown key \"node_ids\"; did you mean \"node_id\"?");
}

#[test]
fn an_address_that_nobody_can_dial_is_refused() {
    let insecure = ("insecure", "true");
    for listen in ["0.0.0.0:7001", "[::]:7001", "127.0.0.1:0"] {
        let broker = [("roles", "broker"), ("node_id", "2"), ("api_listen", listen), insecure];
        assert_eq!(
            refusal(&broker),
            format!(
                "command line: api_listen: others cannot dial {listen}; set api_advertised to the address that \
                 reaches this node"
            )
        );
        let advertised = [&broker[..], &[("api_advertised", "10.0.0.2:7001")]].concat();
        assert_eq!(with(&advertised).expect("it can be dialled").api_address().expect("checked"), "10.0.0.2:7001");
        let voter = with(&[("api_listen", listen), insecure]).expect("a voter has an address");
        assert_eq!(voter.api_address().expect("checked"), "127.0.0.1:7001");
    }
    assert!(refusal(&[("voters", "1@127.0.0.1:7101/0.0.0.0:7001"), insecure]).contains("voters: others cannot dial"));
    assert!(refusal(&[("api_advertised", "[::]:7001"), insecure]).contains("api_advertised: others cannot dial"));
}

#[test]
fn a_disk_timeout_that_a_good_disk_exceeds_is_refused() {
    assert_eq!(
        refusal(&[("disk_timeout_ms", "99")]),
        "command line: disk_timeout_ms: invalid value 99: expected at least 100"
    );
    let config = with(&[("disk_timeout_ms", "100"), ("log_dir_free_bytes_min", "0"), ("raft_reserve_bytes", "0")]);
    assert_eq!(config.expect("valid").disk_timeout(), Duration::from_millis(100));
}
