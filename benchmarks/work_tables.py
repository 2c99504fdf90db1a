"""The tables that the work is done on."""

TABLES = """
drop schema public cascade;
create schema public;
create table items (id integer primary key, number integer not null);
insert into items select number, 0 from generate_series(0, 999) as number;
analyze items;
"""
