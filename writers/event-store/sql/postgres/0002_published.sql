-- The highest place that was ever published, where the cursor was set back from it; below the cursor it says nothing.
ALTER TABLE relay ADD COLUMN published_xid xid8 NOT NULL DEFAULT '0', ADD COLUMN published_position bigint NOT NULL DEFAULT 0;
