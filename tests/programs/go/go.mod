module talker

go 1.19
