"""The figures of the report: arrays in, encoded pictures out; nothing here touches pyplot's state."""
