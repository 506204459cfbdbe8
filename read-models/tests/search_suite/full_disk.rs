//! A full disk: writes are refused for a while, what was there is still answered, and nothing has to be started again
//! (fault 14).

use std::process::Command;

use super::*;

/// A file system of its own, of a few megabytes.
struct SmallDisk {
    at: PathBuf,
}

// === impl SmallDisk ===

impl SmallDisk {
    /// `None` where mounting is not permitted.
    fn mount(at: &Path, size: &str) -> Option<Self> {
        std::fs::create_dir_all(at).unwrap();
        let size = format!("size={size}");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(at).output();
        if !mounted.is_ok_and(|mounted| mounted.status.success()) {
            return None;
        }
        Some(Self { at: at.to_owned() })
    }

    /// Takes all the space that is left.
    fn fill(&self) {
        let mut file = std::fs::File::create(self.at.join("ballast")).unwrap();
        let block = [1_u8; 4096];
        while std::io::Write::write_all(&mut file, &block).is_ok() {}
    }

    fn free(&self) {
        std::fs::remove_file(self.at.join("ballast")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.at).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_waited_out_and_the_old_state_served() {
    let folder = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(folder.path(), "24m") else {
        println!("mounting is not permitted here: nothing was tested");
        return;
    };
    let mut store = Fixture::in_dir(folder.path().join("search")).await;
    store.start().await;
    store.make_live().await;
    store.start_indexer();
    store.show(vec![named("A", "Leek")]).await;

    disk.fill();
    // Rows go in for as long as their log has room in it; then they are refused, and none is half there.
    let mut taken: Vec<String> = vec!["A".to_owned()];
    let refused = async {
        for number in 0.. {
            let name = format!("S-{number}");
            match store.try_write(vec![named(&name, &"Leek ".repeat(2_000))]).await {
                Ok(()) => taken.push(name),
                Err(error) => return error,
            }
        }
        unreachable!()
    };
    let refused = tokio::time::timeout(DEADLINE, refused).await.unwrap();
    assert!(refused.is_transient(), "{refused}");
    // Longer than a pass of the indexer that fails, and a beat.
    let looks = async {
        for _ in 0..300 {
            let found = store.found(all()).await;
            assert!(skus(&found).iter().all(|sku| taken.contains(sku)), "{found:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    looks.await;

    disk.free();
    let late = tokio::time::timeout(DEADLINE, async {
        while store.try_write(vec![named("LATE", "Leek")]).await.is_err() {
            tokio::task::yield_now().await;
        }
    });
    late.await.unwrap();
    taken.push("LATE".to_owned());
    taken.sort();
    let expected: Vec<&str> = taken.iter().map(String::as_str).collect();
    store.until_found(all(), &expected).await;
    store.restart().await;
    store.until_found(all(), &expected).await;
    store.stop().await;
}
