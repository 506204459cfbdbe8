-- The highest place that was ever published, where the cursor was set back from it; below the cursor it says nothing.
ALTER TABLE relay ADD COLUMN published INTEGER NOT NULL DEFAULT 0;
