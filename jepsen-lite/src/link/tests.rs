use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout};

use super::*;

/// Two members, of which the second one's API echoes; the way to it as the first one sees it.
async fn echo() -> (Links, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let api = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.into_split();
                tokio::io::copy(&mut read, &mut write).await
            });
        }
    });
    let member = |id, api: &str| Member { id, raft: "127.0.0.1:1".to_owned(), api: api.to_owned() };
    let links = Links::between(&[member(1, "127.0.0.1:1"), member(2, &api)]);
    let way = links.dial_maps()[&1].split('"').nth(3).expect("raft, then api").to_owned();
    (links, way)
}

async fn connect(way: &str) -> TcpStream {
    for _ in 0..200 {
        if let Ok(stream) = TcpStream::connect(way).await {
            return stream;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("nobody listens at {way}");
}

async fn echoed(stream: &mut TcpStream, text: &[u8]) -> std::io::Result<Vec<u8>> {
    stream.write_all(text).await?;
    let mut back = vec![0; text.len()];
    stream.read_exact(&mut back).await?;
    Ok(back)
}

/// Long enough for loopback; whoever waits longer is being held up.
const SOON: Duration = Duration::from_millis(300);

const THERE: Direction = (1, 2, Port::Api);
const BACK: Direction = (2, 1, Port::Api);

fn only(at: Direction, condition: Condition) -> impl Fn(Direction) -> Condition {
    move |other| if other == at { condition } else { Condition::Open }
}

#[tokio::test]
async fn nobody_is_there_when_nobody_is_behind_it() {
    let api = format!("127.0.0.1:{}", free_port());
    let listener = TcpListener::bind(&api).await.unwrap();
    let member = |id, api: &str| Member { id, raft: "127.0.0.1:1".to_owned(), api: api.to_owned() };
    let links = Links::between(&[member(1, "127.0.0.1:1"), member(2, &api)]);
    let way = links.dial_maps()[&1].split('"').nth(3).expect("raft, then api").to_owned();
    connect(&way).await;
    drop(listener);
    while TcpStream::connect(&way).await.is_ok() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let _listener = TcpListener::bind(&api).await.unwrap();
    connect(&way).await;
}

#[tokio::test]
async fn an_open_link_carries_both_ways() {
    let (_links, way) = echo().await;
    assert_eq!(echoed(&mut connect(&way).await, b"hello").await.unwrap(), b"hello");
}

#[tokio::test]
async fn a_silent_direction_holds_bytes_back_and_loses_none() {
    for at in [THERE, BACK] {
        let (links, way) = echo().await;
        let mut stream = connect(&way).await;
        echoed(&mut stream, b"hello").await.unwrap();
        links.set(only(at, Condition::Silent));
        assert!(timeout(SOON, echoed(&mut stream, b"held")).await.is_err(), "{at:?}");
        links.set(|_| Condition::Open);
        let mut back = vec![0; 4];
        stream.read_exact(&mut back).await.unwrap();
        assert_eq!(back, b"held");
    }
}

#[tokio::test]
async fn a_refusing_link_cuts_what_is_there_and_refuses_what_comes() {
    let (links, way) = echo().await;
    let mut stream = connect(&way).await;
    echoed(&mut stream, b"hello").await.unwrap();
    links.set(only(THERE, Condition::Refusing));
    assert!(echoed(&mut stream, b"cut").await.is_err());
    let refused = TcpStream::connect(&way).await.map_err(|error| error.kind());
    assert_eq!(refused.err(), Some(std::io::ErrorKind::ConnectionRefused));
    links.set(|_| Condition::Open);
    assert_eq!(echoed(&mut connect(&way).await, b"again").await.unwrap(), b"again");
}

#[tokio::test]
async fn a_resetting_link_resets() {
    let (links, way) = echo().await;
    let mut stream = connect(&way).await;
    echoed(&mut stream, b"hello").await.unwrap();
    links.set(only(THERE, Condition::Resetting));
    let ended = stream.read(&mut [0]).await.map_err(|error| error.kind());
    assert_eq!(ended.err(), Some(std::io::ErrorKind::ConnectionReset));
}

#[tokio::test]
async fn a_slow_link_delays() {
    let (links, way) = echo().await;
    let mut stream = connect(&way).await;
    links.set(only(THERE, Condition::Slow { delay_ms: 200, jitter_ms: 0 }));
    let began = Instant::now();
    assert_eq!(echoed(&mut stream, b"hello").await.unwrap(), b"hello");
    assert!(began.elapsed() >= Duration::from_millis(200));
}

#[tokio::test]
async fn a_limited_link_takes_its_time() {
    let (links, way) = echo().await;
    let mut stream = connect(&way).await;
    links.set(only(THERE, Condition::Limited { bytes_per_second: 10_000 }));
    let began = Instant::now();
    echoed(&mut stream, &[7; 2_000]).await.unwrap();
    assert!(began.elapsed() >= Duration::from_millis(200));
}

#[tokio::test]
async fn a_stalling_link_gives_what_it_has_room_for_and_the_rest_later() {
    let (links, way) = echo().await;
    let mut stream = connect(&way).await;
    links.set(only(THERE, Condition::Stalling { after_bytes: 3 }));
    stream.write_all(b"hello").await.unwrap();
    let mut back = vec![0; 3];
    stream.read_exact(&mut back).await.unwrap();
    assert_eq!(back, b"hel");
    assert!(timeout(SOON, stream.read(&mut [0])).await.is_err());
    links.set(|_| Condition::Open);
    stream.read_exact(&mut back[..2]).await.unwrap();
    assert_eq!(&back[..2], b"lo");
}

#[tokio::test]
async fn a_half_closed_link_ends_one_way_only() {
    let (links, way) = echo().await;
    let mut stream = connect(&way).await;
    echoed(&mut stream, b"hello").await.unwrap();
    // The echo ends its own side when it sees the end of ours.
    links.set(only(THERE, Condition::HalfClosed));
    stream.write_all(b"unheard").await.unwrap();
    assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0);
}
