//! Stands between a store and its server, and acts once certain bytes are on their way.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

/// What happens to a request that holds the bytes.
#[derive(Clone)]
pub enum Then {
    /// The connection ends before the server gets it, from the nth on.
    Cut { nth: u32 },
    /// It is answered, and then nothing more of this connection goes on until then.
    Hold { until: Arc<Notify> },
}

pub struct Proxy {
    url: String,
    held: Arc<Notify>,
}

// === impl Proxy ===

impl Proxy {
    pub async fn start(url: &str, bytes: &'static [u8], then: Then) -> Self {
        let (credentials, rest) = url.split_once('@').unwrap();
        let (server, database) = rest.split_once('/').unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let proxy = Self { url: format!("{credentials}@127.0.0.1:{port}/{database}"), held: Arc::default() };
        let (server, held, seen) = (server.to_owned(), Arc::clone(&proxy.held), Arc::new(AtomicU32::new(0)));
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(&server).await.unwrap();
                tokio::spawn(pass_on(client, server, bytes, then.clone(), Arc::clone(&held), Arc::clone(&seen)));
            }
        });
        proxy
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// Waits until a connection is held.
    pub async fn holds(&self) {
        self.held.notified().await;
    }
}

async fn pass_on(
    mut client: TcpStream,
    mut server: TcpStream,
    bytes: &[u8],
    then: Then,
    held: Arc<Notify>,
    seen: Arc<AtomicU32>,
) {
    let (mut up, mut down) = (vec![0; 65_536], vec![0; 65_536]);
    let mut is_held = false;
    loop {
        tokio::select! {
            read = client.read(&mut up) => {
                let Ok(read @ 1..) = read else { return };
                let is_it = up[..read].windows(bytes.len()).any(|window| window == bytes);
                match &then {
                    Then::Cut { nth } if is_it && seen.fetch_add(1, Ordering::SeqCst) + 1 >= *nth => return,
                    // The request before it was answered; this one waits.
                    Then::Hold { until } if is_held => {
                        is_held = false;
                        held.notify_one();
                        until.notified().await;
                    }
                    Then::Hold { .. } => is_held = is_it,
                    Then::Cut { .. } => {}
                }
                if server.write_all(&up[..read]).await.is_err() {
                    return;
                }
            }
            read = server.read(&mut down) => {
                let Ok(read @ 1..) = read else { return };
                if client.write_all(&down[..read]).await.is_err() {
                    return;
                }
            }
        }
    }
}
