CREATE TABLE retired_generations (number INTEGER PRIMARY KEY);
